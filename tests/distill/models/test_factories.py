"""Networks from the user's Python code: what works, and messages that name file, line and function."""

import re
import sys

import pytest
import torch
from torch import nn

from cka_probe.distill.models.sources import load_model

MODELS = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
import neighbour

@dataclass
class Settings:
    width: int = 4

class Net(nn.Linear):
    def __init__(self):
        super().__init__(Settings().width, neighbour.CLASSES)

network = Net()
weights = {"a": torch.zeros(3)}

def make():
    return Net()

def build_wide(width, depth=2):
    return nn.Linear(width, depth)

def fails():
    return inner()

def inner():
    return {}["missing"]

def in_torch():
    return nn.Linear(-1, 3)

def nothing():
    nn.Linear(1, 1)

def the_class():
    return Net

def pair():
    return Net(), "transform"

def leaves():
    raise SystemExit(3)

def imports():
    import no_such_library_here
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("CLASSES = 2\n")
    (tmp_path / "zoo.py").write_text(MODELS)
    return tmp_path / "zoo.py"


@pytest.mark.parametrize("name", ["make", "Net", "network"])
def test_functions_classes_and_networks(file, name):
    model = load_model(f"{file}:{name}")
    assert model(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("fails", ValueError, r"zoo.py:fails failed\. .*zoo\.py, line 29, in inner: KeyError: 'missing'"),
        ("in_torch", ValueError, r"zoo\.py, line 32, in in_torch: RuntimeError: "),
        (
            "nothing",
            TypeError,
            r"zoo\.py:nothing returned NoneType, not a torch\.nn\.Module\. Does it end with `return`",
        ),
        ("the_class", TypeError, r"returned the class Net, not a torch\.nn\.Module\. Return Net\(\)\."),
        ("pair", TypeError, r"returned tuple, not a torch\.nn\.Module\. Return the network alone\."),
        ("weights", TypeError, r"zoo\.py:weights is a dict, not a function"),
        ("mkae", ValueError, r"zoo\.py has no function 'mkae' that makes a network\. Did you mean 'make'\?"),
        (
            "build_wide",
            ValueError,
            r"build_wide needs arguments \(width\)\. .*def make\(\): return build_wide\(\.\.\.\)",
        ),
        ("leaves", ValueError, r"line 44, in leaves: it ends the program"),
        ("imports", ModuleNotFoundError, r"line 47, in imports: ModuleNotFoundError: No module named 'no_such_lib"),
    ],
)
def test_what_is_wrong_with_the_function(file, name, kind, message):
    with pytest.raises(kind, match=message):
        load_model(f"{file}:{name}")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("def make(:\n    pass\n", ValueError, r"mine\.py, line 1: .*: def make\(:"),
        ("import torch\n\nx = 1 / 0\n", ValueError, r"mine\.py, line 3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(2)\n", ValueError, r"mine\.py, line 2: it ends the program\. .*__main__"),
        ("import no_such_library_here\n", ModuleNotFoundError, r"mine\.py, line 1: .*'no_such_library_here'"),
        ("x = 3\n", ValueError, r"has no function 'make' that makes a network\. It defines no function\."),
    ],
)
def test_what_is_wrong_with_the_file(tmp_path, monkeypatch, code, kind, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(kind, match=message):
        load_model(f"{tmp_path / 'mine.py'}:make")
    assert ("mine" in sys.modules) == (code == "x = 3\n")  # half of a module does not stay
    # The same file as a module in the working directory.
    (tmp_path / "mine.py").rename(tmp_path / "mine_as_module.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message.replace(r"mine\.py", r"mine_as_module\.py")):
        load_model("mine_as_module:make")


def test_a_module_that_is_not_there_and_one_whose_name_begins_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="There is no Python module 'absent_zoo'"):
        load_model("absent_zoo:make")
    (tmp_path / "no_such_lib_zoo.py").write_text("import no_such_lib\n")
    with pytest.raises(ModuleNotFoundError, match=r"no_such_lib_zoo\.py, line 1: .*'no_such_lib'"):
        load_model("no_such_lib_zoo:make")


def test_a_file_without_a_function_and_other_files(file, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"say which function makes the network: {file}:FUNCTION. It has")):
        load_model(str(file))
    with pytest.raises(ValueError, match=r"model\.pt is a file of weights\. Name the network"):
        load_model("model.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=re.escape(f"write hf:{tmp_path}")):
        load_model(str(tmp_path))


def test_a_network_in_a_file_is_used_as_it_is(tmp_path):
    (tmp_path / "trained.py").write_text(
        "from torch import nn\nnet = nn.Linear(2, 1)\nnn.init.constant_(net.weight, 7.0)\n"
    )
    model = load_model(f"{tmp_path / 'trained.py'}:net")
    assert isinstance(model, nn.Linear)
    assert model.weight.tolist() == [[7.0, 7.0]]
