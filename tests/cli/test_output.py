"""Names, title, scale and table of `compare`; two saved results; --quiet without a file."""

import json

import numpy as np
import pandas as pd
import pytest
from command_line import run
from pictures import share_of_ink

import cka_probe as cp

SMALL = ("--samples", 48, "--batch-size", 16, "--image-size", 16, "--num-classes", 10, "--layers", "layer?")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["conv1", "=fc"]
    before = cp.SimilarityMatrix([[0.5, 0.2], [np.nan, 0.1]], names, names, meta={"model_x": "a", "model_y": "b"})
    after = cp.SimilarityMatrix([[0.4, 0.9], [0.3, 0.1]], names, names)
    before.save("before.npz"), after.save("after.npz")
    cp.SimilarityMatrix([[1.0]], ["x"], ["y"]).save("other.npz")
    cp.SimilarityMatrix([[0.4, 0.9], [0.3, 0.1]], names, names, measure="gulp").save("gulp.npz")
    return before, after


def test_names_of_networks_and_of_a_saved_result(capsys, saved, tmp_path):
    code, out, _ = run(capsys, "compare", "resnet8", "resnet14", *SMALL, "--names", "small, large", "-o", "r.npz")
    assert code == 0
    assert "of small x large" in out
    result = cp.SimilarityMatrix.load("r.npz")
    assert (result.meta["model_x"], result.meta["model_y"]) == ("small", "large")
    assert result.notes[0].startswith("no weights given: small has random weights")
    code, out, _ = run(capsys, "compare", "r.npz", "--names", "one,two", "--json")
    assert json.loads(out)["meta"]["model_y"] == "two"


def test_a_table_of_all_pairs(capsys, saved):
    assert run(capsys, "compare", "before.npz", "--csv", "pairs.csv", "-q")[:2] == (0, "")
    table = pd.read_csv("pairs.csv")
    assert dict(zip(zip(table["row"], table["column"], strict=True), table["value"].round(6), strict=True))[
        "conv1", "'=fc"
    ] == pytest.approx(0.2)
    assert len(table) == 4


def test_title_and_limits_reach_the_picture(capsys, saved, monkeypatch):
    drawn = {}
    original = cp.SimilarityMatrix.plot

    def plot(self, **options):
        drawn["ax"] = original(self, **options)
        return drawn["ax"]

    monkeypatch.setattr(cp.SimilarityMatrix, "plot", plot)
    code, _, _ = run(capsys, "compare", "before.npz", "--plot", "r.png", "--title", "Two nets", "--limits", "0.1,0.6")
    assert code == 0
    assert drawn["ax"].get_title() == "Two nets"
    assert drawn["ax"].images[0].get_clim() == (0.1, 0.6)
    assert share_of_ink(drawn["ax"].figure) > 0.1


def test_two_saved_results_show_what_changed(capsys, saved, tmp_path):
    code, out, _ = run(capsys, "compare", "before.npz", "after.npz", "--plot", "c.png", "--csv", "c.csv")
    assert code == 0
    assert out.splitlines()[0] == "after.npz minus before.npz: cka, 2 x 2 layers"
    assert "mean change   +0.200, from -0.100 to +0.700" in out
    assert "+0.700        conv1 x =fc (0.200 to 0.900)" in out
    assert "undefined     1 of 4" in out
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv("c.csv")
    np.testing.assert_allclose(table["change"], [-0.1, 0.7, np.nan, 0.0], atol=1e-12)
    assert list(table["row"]) == ["conv1", "conv1", "'=fc", "'=fc"]
    code, out, _ = run(capsys, "compare", "before.npz", "after.npz", "--json", "--names", "old,new")
    found = json.loads(out)
    assert found["text"].startswith("new minus old: cka")
    assert found["change"][1][0] is None
    assert found["after"] == [[0.4, 0.9], [0.3, 0.1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("before.npz", "-q"), "--quiet prints no summary, and no file is asked for. Give --output, --plot, --csv or"),
        (("before.npz", "--limits", "wide", "--plot", "p.png"), "--limits must be one of auto, full, data, chance, or"),
        (("before.npz", "--limits", "1,0", "--plot", "p.png"), "--limits must be one of"),
        (("before.npz", "--title", "x"), "--title is for the picture. Give --plot too."),
        (("before.npz", "--limits", "data"), "--limits is for the picture. Give --plot too."),
        (("before.npz", "--names", "one"), "--names takes two different names with a comma between them"),
        (("before.npz", "--csv", "t.txt"), "--csv must end in .csv, got t.txt."),
        (("before.npz", "--csv", "nowhere/t.csv"), "There is no folder nowhere"),
        (("before.npz", "other.npz"), "have other rows, so their cells have no counterparts"),
        (("before.npz", "gulp.npz"), "before.npz holds cka and gulp.npz gulp: they cannot be compared"),
    ],
)
def test_mistakes_say_what_to_do(capsys, saved, arguments, message):
    code, _, err = run(capsys, "compare", *arguments)
    assert code == 2
    assert message in err
