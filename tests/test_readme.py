"""A person with the README alone: commands and snippets run after a short demo, and their pictures show something."""

import re
import shlex
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from test_docs import blocks
from test_examples import load

import cka_probe as cp
from cka_probe.distill.data import fashion

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INSTALLED = fashion.DEBIAN_FOLDER.is_dir()


def here(code: str) -> str:
    """The code with the other data set where Fashion-MNIST is not installed, and with few epochs."""
    if not INSTALLED:
        code = code.replace("fashion_mnist(train_per_class=100", "digits(train_per_class=100")
        code = code.replace("import fashion_mnist,", "import digits,")
    return re.sub(r"epochs=\d+", "epochs=1", code)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder in which a demo of few epochs has run, as `make demo` in a clone."""
    folder, threads = tmp_path_factory.mktemp("clone"), torch.get_num_threads()
    arguments = ["--data", "digits", "--seeds", "1", "--workers", "1", "--teacher-epochs", "2", "--epochs", "3"]
    arguments += ["--output", str(folder / "figures" / "demo"), "--runs", str(folder / "runs" / "demo")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["demo.py", *arguments])
        torch.set_num_threads(1)
        load("demo").main()
    torch.set_num_threads(threads)
    plt.close("all")
    return folder


def check_ink(picture: Path) -> None:
    """A picture is neither blank nor of one colour: enough of it is drawn, in light and dark colours."""
    pixels = plt.imread(picture)[..., :3]
    inked = pixels.min(-1) < 0.88
    assert inked.mean() > 0.04, f"{picture.name}: {inked.mean():.1%} ink"
    lightness = pixels[inked].mean(-1)
    dark, light = np.quantile(lightness, (0.05, 0.95))
    assert light - dark > 0.3, f"{picture.name}: all colours between {dark:.2f} and {light:.2f}"


def test_the_demo_shows_each_method(demo):
    output = demo / "figures" / "demo"
    assert list(pd.read_csv(output / "accuracy.csv")["method"]) == ["CE", "KD", "RCKA", "RCKA, ramp"]
    pictures = sorted(path.name for path in output.glob("*.png"))
    assert pictures == [
        "accuracy.png",
        "before_after.png",
        "mmd_bound.png",
        "teacher_teacher.png",
        "training_curves.png",
    ]
    for name in ("before_after.png", "teacher_teacher.png"):
        check_ink(output / name)
    assert cp.SimilarityMatrix.load(output / "rcka_ramp.npz").shape == (11, 5)


def test_the_snippets(demo, monkeypatch):
    monkeypatch.chdir(demo)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    mpl.use("Agg")
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(blocks(README)):
        exec(compile(here(block), f"README.md, block {number + 1}", "exec"), names)
    plt.close("all")
    check_ink(demo / "similarity.png")
    check_ink(demo / "cka_against_epoch.png")
    assert names["latex"].startswith("\\begin{tabular}")
    assert "layer1.0" in names["latex"]
    assert list(names["history"].matrices) == [0, 1, 2, 3, 4]


def test_each_task_takes_less_than_ten_lines():
    """Heatmap and table of two networks, and the curve along training."""
    compare, curve, *_ = blocks(README)
    for block, last in ((compare, "to_latex"), (curve, "savefig")):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
        assert next(i for i, line in enumerate(lines) if last in line) < 10


def test_the_commands(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S))
    commands = [shlex.split(line, comments=True) for line in shell.replace("\\\n", " ").splitlines()]
    commands = [words[1:] for words in commands if words and words[0] == "cka-probe"]
    assert commands
    for words in commands:
        words = words if INSTALLED else ["digits" if word == "fashion_mnist" else word for word in words]
        code, out, err = run(capsys, *words)
        assert code == 0, err
        assert "random weights" not in out
        check_ink(demo / words[words.index("--plot") + 1])
