"""compare_features: values by the definition, and errors that name the layer."""

import numpy as np
import pytest
import reference
import torch
from small_networks import image_batches, small_network

import cka_probe as cp


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 6))
    return {"conv": first.reshape(30, 3, 2), "fc": (first[:, :3] + rng.normal(size=(30, 3))).astype(np.float32)}


@pytest.fixture
def others():
    rng = np.random.default_rng(1)
    return {"counts": rng.integers(0, 9, (30, 4)), "dead": np.full((30, 2), 3.0), "one": rng.normal(size=30)}


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_values_equal_the_definition(features, others, estimator):
    result = cp.compare_features(features, others, estimator=estimator, names=("a.npz", "b.npz"), progress=False)
    for i, x in enumerate(features.values()):
        for j, y in ((0, others["counts"]), (2, others["one"])):
            expected = reference.cka(x.reshape(30, -1), y.reshape(30, -1), estimator)
            assert result.values[i, j] == pytest.approx(expected, abs=1e-10)
    assert np.isnan(result.values[:, 1]).all()
    assert "b.npz: 'dead' is constant over all samples, so its similarity is undefined" in result.notes
    assert (result.rows, result.columns) == (("conv", "fc"), ("counts", "dead", "one"))
    assert (result.meta["model_x"], result.meta["model_y"]) == ("a.npz", "b.npz")
    assert result.standard_error is not None


def test_equals_compare_on_extracted_features():
    networks, data = (small_network(0), small_network(1)), image_batches(4)
    x, y = (cp.extract(network, data, ["0", "2"], progress=False) for network in networks)
    kept = cp.compare_features(x, y, progress=False)
    run = cp.compare(*networks, data, layers=["0", "2"], scope="dataset", progress=False)
    np.testing.assert_allclose(kept.values, run.values, atol=1e-6)
    np.testing.assert_allclose(kept.p_value, run.p_value, atol=1e-6)


def test_one_set_of_features_other_measures_and_kernels(features):
    own = cp.compare_features(features, progress=False)
    np.testing.assert_allclose(np.diag(own.values), 1, atol=1e-10)
    distances = cp.compare_features(features, measure="procrustes", progress=False)
    assert distances.is_distance
    expected = cp.MEASURES["procrustes"].function(features["conv"].reshape(30, -1), features["fc"].astype(float))
    assert distances.values[0, 1] == pytest.approx(float(expected), abs=1e-10)
    assert "kernel" not in distances.meta
    assert "estimator" not in distances.meta
    assert cp.compare_features(features, kernel=cp.RBF(), progress=False).meta["kernel"].startswith("RBF")


def test_a_layer_that_rests_on_one_sample_gives_a_note(features):
    far = {"fc": features["fc"].copy()}
    far["fc"][7] += 100
    result = cp.compare_features(features | {"wide": np.eye(30, 300)}, far, names=("a", "b"), progress=False)
    note = "b: Two fifths of the weight of 'fc' rest on 1 of 30 samples (index 7), so that they alone can move its CKA"
    assert [line.startswith(note) for line in result.notes if "Two fifths" in line] == [True]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fc": np.ones((29, 2))}, ValueError, r"^x: 'fc' has 29 samples and 'conv' of x has 30"),
        ({"fc": np.array([["a"]] * 30)}, TypeError, "^x: 'fc' is not an array of numbers"),
        ({"fc": torch.ones(30, 2, dtype=torch.complex64)}, TypeError, "^x: 'fc' is of dtype torch.complex64"),
        ({"fc": np.array(3.0)}, ValueError, r"^x: 'fc' has shape \(\)"),
        (
            {"fc": np.where(np.arange(60).reshape(30, 2) == 9, np.nan, 1)},
            ValueError,
            "NaN or infinity, first in sample 4",
        ),
    ],
)
def test_errors_name_the_layer(features, change, error, message):
    with pytest.raises(error, match=message):
        cp.compare_features(features | change, progress=False)


def test_errors_for_bad_arguments(features):
    with pytest.raises(TypeError, match="x: the features must be a mapping of layers to arrays, got ndarray"):
        cp.compare_features(features["conv"], progress=False)
    with pytest.raises(ValueError, match="y holds no features"):
        cp.compare_features(features, {}, progress=False)
    with pytest.raises(ValueError, match="have 3 samples, but this needs at least 4"):
        cp.compare_features({"a": np.eye(3)}, progress=False)
    with pytest.raises(ValueError, match="`names` must be two"):
        cp.compare_features(features, names="ab", progress=False)
    with pytest.raises(ValueError, match="No measure is called 'ckaa'"):
        cp.compare_features(features, measure="ckaa", progress=False)
