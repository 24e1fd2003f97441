"""The progress bar: nothing is warned where a notebook cannot show a widget, and it can be turned off."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

import cka_probe as cp

IN_A_NOTEBOOK = """
import sys, warnings
warnings.simplefilter("error")
import IPython
from ipykernel.zmqshell import ZMQInteractiveShell
IPython.get_ipython = lambda: type("Shell", (), {"config": {"IPKernelApp": {}}})()
import torch
import cka_probe as cp
net = torch.nn.Linear(4, 4)
cp.compare(net, net, [torch.randn(8, 4)])
from tqdm.auto import tqdm  # as accelerate does when training begins
"""


@pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="needs ipykernel, of the extra docs")
@pytest.mark.skipif(importlib.util.find_spec("ipywidgets") is not None, reason="needs no ipywidgets")
def test_a_notebook_without_widgets_gets_a_bar_of_text_and_no_warning():
    done = subprocess.run([sys.executable, "-c", IN_A_NOTEBOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stderr


def test_the_bar_can_be_turned_off(capsys):
    net = nn.Linear(4, 4)
    batches = [torch.randn(8, 4)]
    cp.compare(net, net, batches, progress=False)
    assert capsys.readouterr().err == ""
    cp.compare(net, net, batches)
    assert "compare" in capsys.readouterr().err
