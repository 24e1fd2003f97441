"""Options of a measure in `compare`, `compare_many`, `compare_features` and the command line."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from typer.testing import CliRunner

import cka_probe as cp
from cka_probe.cli import app
from cka_probe.estimators import MEASURES


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)) for _ in range(2)]


@pytest.fixture
def features(rng):
    return {"a": rng.normal(size=(30, 4)), "b": rng.normal(size=(30, 7))}


CASES = [
    ("mutual_knn", {"k": 5}),
    ("cknna", {"k": 5, "form": "paper"}),
    ("gulp", {"regularization": 0.5}),
    ("held_out_regression_r2", {"folds": 3, "regularization": 0.1, "seed": 4}),
    ("distance_correlation", {"bias_corrected": True}),
    ("jaccard", {"k": np.int64(4), "kernel": cp.RBF()}),
    ("mmd", {"kernel": cp.RBF(bandwidth=2.0)}),
]


@pytest.mark.parametrize(("measure", "options"), CASES, ids=[name for name, _ in CASES])
def test_options_reach_the_measure_and_stay_in_the_result(networks, features, measure, options, tmp_path):
    data = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    x, y = (cp.extract(net, data, "leaves", progress=False) for net in networks)
    function = MEASURES[measure].function
    one = cp.compare(*networks, data, measure=measure, progress=False, **options)
    assert_allclose(one.values[0, 2], float(function(x["0"], y["2"], **options)), rtol=1e-9)
    many = cp.compare_many({"a": networks[0], "b": networks[1]}, data, measure=measure, progress=False, **options)
    assert_allclose(many.values[0, 5], one.values[0, 2], rtol=1e-9)
    plain = cp.compare_features(features, measure=measure, progress=False, **options)
    assert_allclose(plain.values[0, 1], float(function(features["a"], features["b"], **options)), rtol=1e-9)
    plain.save(tmp_path / "x.npz")
    loaded = cp.SimilarityMatrix.load(tmp_path / "x.npz")
    for name, value in options.items():
        kept = repr(value) if name == "kernel" else value
        assert loaded.meta["options"][name] == kept
        assert f"{name} {kept}" in str(loaded)


def test_the_result_says_the_defaults_too(features):
    assert cp.compare_features(features, measure="mutual_knn", progress=False).meta["options"] == {"k": 10}
    assert cp.compare_features(features, measure="nbs", progress=False).meta["options"] == {}
    assert "options" not in cp.compare_features(features, progress=False).meta


class Untouched(nn.Module):
    def forward(self, x):
        raise AssertionError("the options must be checked before the network runs")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"measure": "mutual_knn", "K": 5}, TypeError, "`K` is neither a parameter of `compare` nor.*Did you mean `k`"),
        ({"measure": "gulp", "regularisation": 1}, TypeError, "Did you mean `regularization`"),
        ({"measure": "cca", "k": 5}, TypeError, "nor an option of the measure 'cca'.*This measure has no options"),
        ({"k": 5}, TypeError, "`k` is neither a parameter of `compare` nor an option of the measure 'cka'"),
        ({"layer": "leaves"}, TypeError, "`layer` is neither.*Did you mean `layers`"),
        ({"measure": "mutual_knn", "k": 0}, ValueError, "`k` must be at least 1, got 0"),
        ({"measure": "mutual_knn", "k": 2.5}, TypeError, "`k` must be an int, got float"),
        ({"measure": "held_out_cca", "folds": 1}, ValueError, "`folds` must be at least 2, got 1"),
        ({"measure": "cknna", "form": "x"}, ValueError, "`form` must be"),
        ({"measure": "mmd", "kernel": cp.RBF()}, ValueError, "A median bandwidth would give each pair"),
        ({"measure": "procrustes", "kernel": cp.RBF()}, ValueError, "does not use a kernel"),
        ({"measure": "mutual_k", "k": 5}, ValueError, "No measure is called 'mutual_k'. Did you mean 'mutual_knn'"),
    ],
)
def test_wrong_options_fail_before_the_first_batch(given, error, message):
    with pytest.raises(error, match=message):
        cp.compare(Untouched(), Untouched(), torch.zeros(8, 3), progress=False, **given)


def test_too_few_samples_name_the_option(features):
    few = {name: x[:8] for name, x in features.items()}
    with pytest.raises(ValueError, match="`k` must be from 1 to 7 neighbours for 8 samples, got 10"):
        cp.compare_features(few, measure="jaccard", progress=False)
    with pytest.raises(ValueError, match=r"`folds` must be from 2 to 2 for 8 samples.*got 5\."):
        cp.compare_features(few, measure="held_out_cca", progress=False)
    assert np.isfinite(cp.compare_features(few, measure="jaccard", k=7, progress=False).values).all()


def test_options_on_the_command_line(features, tmp_path):
    np.savez(tmp_path / "x.npz", **features)
    run = CliRunner().invoke(
        app,
        [
            "compare",
            str(tmp_path / "x.npz"),
            "--measure",
            "cknna",
            "--option",
            "k=5",
            "--option",
            "form=paper",
            "--json",
            "-q",
        ],
    )
    assert run.exit_code == 0, run.output
    expected = float(MEASURES["cknna"].function(features["a"], features["b"], k=5, form="paper"))
    found = json.loads(run.stdout)
    assert found["values"][0][1] == pytest.approx(expected, rel=1e-9)
    for bad in ("k", "k=", "=5"):
        run = CliRunner().invoke(app, ["compare", str(tmp_path / "x.npz"), "--measure", "cknna", "--option", bad])
        assert run.exit_code != 0
        assert "NAME=VALUE" in str(run.exception)
