"""The examples as a user runs them, with fewer steps; the detectors and segmenters have tests of their own."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import cka_probe as cp

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compare_two_networks(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_two_networks.py", "--output", str(tmp_path / "similarity")])
    load("compare_two_networks").main()
    saved = cp.SimilarityMatrix.load(tmp_path / "similarity.npz")
    assert saved.shape == (11, 5)
    assert np.isfinite(saved.values).all()
    assert (tmp_path / "similarity.png").read_bytes().startswith(b"\x89PNG")
    assert "widest interval" in capsys.readouterr().out


def test_atlas(tmp_path, capsys):
    table = load("atlas").main(networks=8, output=tmp_path)
    assert set(table["property"]) == {"width", "depth", "classes", "epochs", "seed"}
    assert table["p"].between(0, 1).all()
    assert "share of the squared distances" in capsys.readouterr().out
    for name in ("map.png", "tree.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    plt.close("all")


def test_distill_digits(capsys):
    load("distill_digits").main(teacher_epochs=1, student_epochs=1)
    out = capsys.readouterr().out
    assert "labels alone: " in out
    assert "RCKA: " in out
    assert "layer3" in out


def test_distill_language_model():
    pytest.importorskip("transformers", reason="needs transformers")
    found = load("distill_language_model").main(steps=2, seeds=1)
    assert set(found) == {"text alone", "text and hidden states"}
    # 95 characters at random are 6.6 bits; two steps learn little.
    assert all(3 < value < 8 for values in found.values() for value in values)


@pytest.mark.parametrize("name", ["compare", "distill", "theory"])
def test_notebooks(name, tmp_path, monkeypatch, capsys):
    """The documentation runs them in a kernel; here their code runs with one epoch, and the last lines are shown."""
    notebook = json.loads((EXAMPLES / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    mpl.use("Agg")
    names = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        assert not cell.get("outputs"), "the notebooks are kept without outputs"
        if cell["cell_type"] == "code":
            code = re.sub(r"epochs=\d+", "epochs=1", "".join(cell["source"]))
            exec(compile(code, f"{name}.ipynb, cell {number}", "exec"), names)
    plt.close("all")
    if name == "theory":
        assert "same answer for 11%" in capsys.readouterr().out
