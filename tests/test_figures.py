"""The scripts of the figures with tiny settings: they write their files, and small data agree with the claims."""

import re
import sys
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from pictures import check_picture

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import cka_probe as cp  # noqa: E402
from cka_probe.distill.data.fashion import DEBIAN_FOLDER  # noqa: E402
from cka_probe.estimators import MEASURES  # noqa: E402
from figures import __main__ as main  # noqa: E402
from figures import (  # noqa: E402
    all_measures,
    block_structure,
    bounds_along_training,
    centring_and_kernels,
    cka_and_mmd,
    corridor,
    coverage,
    estimators,
    grams,
    methods_table,
    peers,
    scaling,
    sign_minima,
    slack,
    study,
    teacher_student,
    two_seeds,
)
from figures.networks import Budget  # noqa: E402

TINY = Budget(teacher="resnet8", teacher_epochs=1, student_epochs=2, train_per_class=2, batch_size=20)


@pytest.fixture(autouse=True)
def _drawn_for_print(monkeypatch):
    """Every figure that a test saves is as wide as a column or a page and has no text too small to be read there."""
    mpl.use("Agg")
    close = plt.close

    def check_and_close(figure=None):
        if isinstance(figure, Figure):
            check_picture(figure)
        close(figure)

    monkeypatch.setattr("figures.saving.plt.close", check_and_close)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Keyword arguments for scripts: a folder of networks and a budget so small that they learn almost nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("figures.networks.os.cpu_count", lambda: 1)  # in this process: to start another takes longer
        yield {"cache": tmp_path_factory.mktemp("networks"), "budget": TINY}
    torch.set_num_threads(threads)


def written(folder: Path, name: str) -> pd.DataFrame:
    for ending in ("png", "pdf"):
        assert (folder / f"{name}.{ending}").stat().st_size > 1000
    return pd.read_csv(folder / "data" / f"{name}.csv")


SCRIPTS = {path.stem: path for path in (ROOT / "figures").glob("*.py")}
for helper in ("__init__", "__main__", "saving", "networks"):
    SCRIPTS.pop(helper)


def test_every_script_is_in_the_list():
    assert set(SCRIPTS) == set(main.NAMES)


def test_the_list_knows_which_numbers_and_networks_each_script_reads():
    for name, script in SCRIPTS.items():
        text = script.read_text()
        read = re.findall(r'= kept\(folder, "(\w+)"\)', text) + re.findall(r', kept\(folder, "(\w+)"\)', text)
        patterns = main.KEPT.get(name, ())
        for table in read:
            assert any(fnmatch(f"data/{table}.csv", pattern) for pattern in patterns), (name, table)
        shares = re.findall(r"from figures.networks import (.*)", text) not in ([], ["CACHE"])
        assert shares == (name not in main.ALONE), name


def test_fresh_computes_the_numbers_of_the_named_figure_alone(tmp_path, monkeypatch):
    folders = [tmp_path / "data", tmp_path / ".cache"]
    for folder in folders:
        folder.mkdir()
    stored = {f"data/{name}.csv": name for name in ("corridor", "slack", "two_seeds", "peers")}
    stored |= {".cache/teacher.safetensors": "weights"}
    for path, text in stored.items():
        (tmp_path / path).write_text(text)

    def contents():
        return {p.relative_to(tmp_path).as_posix(): p.read_text() for d in folders for p in d.iterdir()}

    def new(folder):
        assert not (folder / "data" / "slack.csv").exists()
        (folder / "data" / "slack.csv").write_text("new")
        return pd.DataFrame()

    monkeypatch.setattr(slack, "make", new)
    main.make("slack", tmp_path, fresh=True)
    assert contents() == stored | {"data/slack.csv": "new"}


@pytest.mark.parametrize("end", ["an error", "nothing to draw"])
def test_fresh_gives_the_numbers_and_runs_back_if_the_figure_cannot_be_made(tmp_path, monkeypatch, end):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "block_structure.csv").write_text("old")
    (tmp_path / ".cache" / "block_structure_resnet20_60").mkdir(parents=True)
    (tmp_path / ".cache" / "block_structure_resnet20_60" / "last.pt").write_text("old run")

    def stopped(folder):
        (folder / "data" / "block_structure.csv").write_text("half")
        (folder / ".cache" / "block_structure_resnet20_60").mkdir()
        if end == "an error":
            raise KeyboardInterrupt

    monkeypatch.setattr(block_structure, "make", stopped)
    with pytest.raises(KeyboardInterrupt) if end == "an error" else nullcontext():
        main.make("block_structure", tmp_path, fresh=True)
    assert (tmp_path / "data" / "block_structure.csv").read_text() == "old"
    assert (tmp_path / ".cache" / "block_structure_resnet20_60" / "last.pt").read_text() == "old run"


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_block_structure_is_trained_once_and_drawn_again_from_its_file(tmp_path, monkeypatch):
    tiny = block_structure.Training(("resnet8", "resnet14"), images_per_class=5, size=8, epochs=1, compared=60)
    first = block_structure.make(tmp_path, cache=tmp_path / "cache", training=tiny)
    assert list(written(tmp_path, "block_structure")["layers"]) == [28, 46]
    monkeypatch.setattr(block_structure, "train", pytest.fail)
    assert list(block_structure.make(tmp_path, training=tiny)["network"]) == list(first["network"])


def test_block_structure_is_skipped_without_its_data(tmp_path, monkeypatch, capsys):
    def missing(**options):
        raise FileNotFoundError("Fashion-MNIST is not there")

    monkeypatch.setattr(block_structure, "fashion_mnist", missing)
    assert block_structure.make(tmp_path, cache=tmp_path) is None
    assert "skipped: Fashion-MNIST is not there" in capsys.readouterr().out


def test_the_deep_network_has_blocks_and_the_shallow_one_has_none():
    """The files in the repository, from which the README's first picture is drawn."""
    found = {}
    for name in ("resnet20", "resnet110"):
        result = cp.SimilarityMatrix.load(ROOT / "figures" / "data" / f"block_structure_{name}.npz")
        inside, across = (
            result.select(rows="layer3.**", columns=f"{stage}.**").values for stage in ("layer3", "layer1")
        )
        found[name] = np.mean(inside), np.mean(across)
    assert found["resnet110"][0] > 0.85
    assert found["resnet110"][1] < 0.25
    assert found["resnet20"][1] > 0.6


def test_the_corridor_holds_all_points_and_adversaries_come_near_both_curves(tmp_path):
    x, y = corridor.random_pairs(50, 12, 2, torch.Generator().manual_seed(0))
    parts = [corridor.points("random", x, y)]
    for side in ("upper", "lower"):
        parts.append(corridor.points(side, *corridor.adversaries(side, 4, 12, 2, 150)))
    table = pd.concat(parts)
    assert (table["mmd_squared"] <= table["upper"] + 1e-9).all()
    assert (table["mmd_squared"] >= table["lower"] - 1e-9).all()
    share = (table["mmd_squared"] / table["upper"]).groupby(table["source"])
    assert share.max()["upper"] > 0.85
    excess = (table["mmd_squared"] / table["lower"]).groupby(table["source"])
    assert excess.min()["lower"] < excess.median()["random"]


def test_corridor_of_networks(tmp_path, networks):
    corridor.make(tmp_path, **networks, count=5, adversarial=2, steps=2, samples=16)
    assert set(written(tmp_path, "corridor")["panel"]) == {"small", "training"}


def test_no_bound_is_broken_and_the_fourth_power_wins_at_wide_bandwidths(tmp_path, networks):
    slack.make(tmp_path, **networks, samples=16, count=2, bandwidths=3)
    table = written(tmp_path, "slack")
    assert (table["slack"] >= 1 - 1e-6).all()
    widest = table[np.isclose(table["tau_squared"], 100)].groupby("bound")["slack"].min()
    assert widest["T4"] < widest["T1"]


def test_unbiased_cka_of_unrelated_images_is_about_zero_and_biased_is_at_its_chance_level(tmp_path, networks):
    estimators.make(tmp_path, **networks, sizes=(8, 32), repeats=20)
    table = written(tmp_path, "estimators")
    unrelated = table[table["pairs"] == "different images"].groupby("batch_size").mean(numeric_only=True)
    assert (unrelated["unbiased"].abs() < 0.15).all()
    assert (unrelated["biased"] - unrelated["chance"]).abs().max() < 0.1
    assert (unrelated["chance"] > 0.02).all()


def test_all_measures(tmp_path, networks):
    table = all_measures.make(tmp_path, **networks, samples=48)
    assert list(written(tmp_path, "all_measures")["measure"]) == list(table["measure"])
    agreement = table.set_index("measure")
    assert set(agreement.index) == {"CKA", "CKA, Gaussian", *MEASURES}
    assert np.allclose(np.diag(agreement), 1)
    assert agreement.loc["procrustes", "angular"] > 0.999  # one is a function of the other
    assert agreement.loc["procrustes", "nbs"] > 0.999


def test_two_seeds(tmp_path, networks):
    two_seeds.make(tmp_path, **networks, seeds=2, samples=64)
    table = written(tmp_path, "two_seeds")
    assert table["accuracy"].between(0, 1).all()
    # With more features than samples CCA is 1 everywhere and finds nothing.
    assert table.set_index(["features", "measure"])["accuracy"]["maps", "cca"] == 0


def test_bounds_along_training_hold_at_every_epoch(tmp_path, networks):
    bounds_along_training.make(tmp_path, **networks, samples=24)
    table = written(tmp_path, "bounds_along_training")
    assert sorted(table["epoch"].unique()) == [0, 1, 2]
    for bound in bounds_along_training.BOUNDS:
        assert (table["mmd_squared"] <= table[bound] + 1e-9).all()


def test_uncentred_alignment_of_unrelated_images_is_high(tmp_path, networks):
    centring_and_kernels.make(tmp_path, **networks, samples=48)
    table = written(tmp_path, "centring_and_kernels")
    unrelated = table.groupby(["kernel", "centred"])["different_images"].median()
    assert unrelated["linear", False] > unrelated["linear", True]


def test_teacher_and_students(tmp_path, networks):
    teacher_student.make(tmp_path, **networks, seeds=2, samples=256)
    table = written(tmp_path, "teacher_student")
    assert set(table["method"]) == set(teacher_student.METHODS)
    assert table["cka"].notna().all()


def test_methods_table_runs_once_and_is_read_afterwards(tmp_path, networks, monkeypatch):
    settings = {**networks, "methods": ("CE", "KD"), "seeds": 2}
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    first = methods_table.make(tmp_path, **settings)
    runs = pd.read_csv(tmp_path / "data" / "methods.csv")
    assert list(runs["method"]) == ["CE", "CE", "KD", "KD"]
    monkeypatch.setattr(methods_table, "train_all", pytest.fail)
    second = methods_table.make(tmp_path, **settings)
    np.testing.assert_allclose(first["mean"], second["mean"], atol=1e-3)


def test_grams(tmp_path, networks):
    grams.make(tmp_path, **networks, samples=40)
    table = written(tmp_path, "grams")
    assert set(table["n"]) == {40, 10}
    np.testing.assert_allclose(table.loc[table["network"] == "teacher", "cka_with_teacher"], 1)


def test_figures_of_benchmarks_say_what_is_missing(tmp_path, capsys):
    for script in (peers, scaling, coverage):
        assert script.make(tmp_path, source=tmp_path / "compare.csv") is None
    assert capsys.readouterr().out.count("skipped: compare.csv does not exist. `make bench` measures it.") == 3


def test_figures_of_benchmarks(tmp_path):
    source = tmp_path / "costs.csv"
    columns = {"tool": ["forward alone", "ours", "theirs"], "case": "ResNet-18", "peak_mib": 10.0, "largest_error": 0.0}
    pd.DataFrame({**columns, "seconds": [1.0, 1.1, 3.0], "times_floor": [1.0, 1.1, 3.0]}).to_csv(source)
    peers.make(tmp_path, source=source)
    written(tmp_path, "peers")
    grown = {"times_floor": 1.2, "seconds": 0.5, "milliseconds_above_per_batch": 2.0, "peak_mib": 3.0}
    rows = [{"axis": axis, "value": value, **grown} for axis in scaling.PANELS for value in (10, 1000)]
    pd.DataFrame(rows).to_csv(source)
    scaling.make(tmp_path, source=source)
    written(tmp_path, "scaling")
    rows = [
        {"what": what, "data": "gaussian", "samples": n, "true_cka": c, "nominal": nominal, "rate": nominal}
        for what, c, nominal in (("95 % interval, jackknife", 0.5, 0.95), ("rejections, normal", 0.0, 0.05))
        for n in (16, 32)
    ]
    pd.DataFrame(rows).to_csv(source)
    coverage.make(tmp_path, source=source)
    written(tmp_path, "coverage")


def test_the_figure_of_signs_shows_the_students_that_the_study_has(tmp_path):
    along = pd.DataFrame({"axis": [1, 1, 1], "t": [1, 0, -1], "cross_entropy": 0.5, "intra": [0, 0.2, 0], "inter": 0.0})
    cells = pd.DataFrame({
        "data": "fashion", "images": 10_000, "method": ["rcka", "rcka", "kd", "dist"], "weight": [15.0, 15, 1, 1],
        "ramp": [True, False, False, False], "seed": [0, 0, 1, 0], "test": [90.5, 87.0, 91.0, 90.0],
        "diagonal": ["0.9 0.8", "0.9 0.7", "0.9 0.85", "0.7 0.6"],
    })  # fmt: skip
    along.to_csv(tmp_path / "study_signs.csv")
    assert sign_minima.make(tmp_path, results=tmp_path) is None
    cells.to_csv(tmp_path / "study.csv")
    sign_minima.make(tmp_path, results=tmp_path)
    written(tmp_path, "sign_minima")
    table = pd.read_csv(tmp_path / "data" / "sign_minima_axes.csv")
    assert table.to_numpy().tolist() == [
        ["RCKA 15", 0, 87.0, 0.9, 0.7],
        ["RCKA 15, ramp", 0, 90.5, 0.9, 0.8],
        ["KD", 1, 91.0, 0.9, 0.85],
    ]


def test_the_figure_of_the_study_has_the_same_rows_for_all_data_sets(tmp_path):
    lines = [
        ("fashion", 10_000, "KD", 5, 91.0), ("fashion", 10_000, "CE", 5, 89.0), ("fashion", 10_000, "DIST", 1, 92.0),
        ("glyphs", 10_000, "CE", 2, 97.5), ("glyphs", 10_000, "KD", 2, 97.0), ("glyphs", 10_000, "RCKA 15", 2, 96.0),
        ("glyphs", 10_000, "untrained, probe", 2, 50.0),
    ]  # fmt: skip
    table = pd.DataFrame(lines, columns=["data", "images", "method", "seeds", "test"]).assign(sd=0.2, chosen=False)
    table.loc[2, "sd"] = float("nan")
    table.to_csv(tmp_path / "cells.csv")
    study.make(tmp_path, source=tmp_path / "cells.csv")
    written(tmp_path, "study")
    parts = [part for _, part in table[:6].groupby("data", sort=False)]
    # minus KD: CE (-2 + 0.5) / 2, KD 0, DIST +1, RCKA -1
    assert study.in_order(parts) == ["RCKA 15", "CE", "KD", "DIST"]


def test_cka_and_mmd_lie_between_the_bounds_of_t3(tmp_path, networks):
    cka_and_mmd.make(tmp_path, **networks, samples=128)
    table = written(tmp_path, "cka_and_mmd")
    assert (table["mmd"] <= table["upper"] + 1e-6).all()
    assert (table["mmd"] >= table["lower"] - 1e-6).all()
    assert (table["mmd"] <= 2 * (1 - table["cka"] ** 2) + 1e-3).all()
    assert table[["mmd standard_error", "cka standard_error"]].gt(0).all(axis=None)
