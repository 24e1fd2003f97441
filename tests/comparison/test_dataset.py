"""compare(scope="dataset"): exact values over all samples by every route, other measures, and notes."""

import numpy as np
import pytest
import reference
import torch
from small_networks import image_batches, small_network
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp
from cka_probe.comparison import feature_keeper


def expected(x_features, y_features, hsic):
    """CKA of every pair by the n x n definition in float64."""
    xs, ys = ([np.asarray(f, dtype=np.float64) for f in side.values()] for side in (x_features, y_features))
    xs, ys = ([f - f.mean(0) for f in side] for side in (xs, ys))
    grams_x, grams_y = ([f @ f.T for f in side] for side in (xs, ys))
    norm_x, norm_y = ([hsic(k, k) for k in side] for side in (grams_x, grams_y))
    return np.array(
        [
            [hsic(k, m) / np.sqrt(a * b) for m, b in zip(grams_y, norm_y, strict=True)]
            for k, a in zip(grams_x, norm_x, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def networks():
    return small_network(0), small_network(1, width=4)


@pytest.mark.parametrize(("estimator", "hsic"), [("unbiased", reference.hsic1), ("biased", reference.hsic0)])
@pytest.mark.parametrize(("pooling", "route"), [("mean", "moments"), ("flatten", "grams")])
def test_both_exact_routes_equal_the_definition(networks, estimator, hsic, pooling, route):
    data = [*image_batches(4), *image_batches(1, size=2, seed=3)]
    result = cp.compare(
        *networks, data, layers=["0", "2", "4"], scope="dataset", estimator=estimator, pooling=pooling, progress=False
    )
    x, y = (cp.extract(net, data, ["0", "2", "4"], pooling=pooling, progress=False) for net in networks)
    np.testing.assert_allclose(result.values, expected(x, y, hsic), atol=1e-6)
    assert result.meta["route"] == route
    assert result.meta["samples"] == 50
    assert any(note.startswith(f"route {route}") for note in result.notes)


def test_the_batch_size_does_not_change_the_result(networks):
    images = torch.cat(image_batches(5))
    results = [
        cp.compare(
            *networks,
            DataLoader(TensorDataset(images), batch_size=size),
            scope="dataset",
            pooling="mean",
            progress=False,
        )
        for size in (60, 7, 1)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.values, results[0].values, atol=1e-6)
    assert results[1].standard_error is not None


def test_the_kernel_is_used(networks):
    data = image_batches(3)
    kernel = cp.RBF(bandwidth=4.0)
    result = cp.compare(*networks, data, layers="4", scope="dataset", kernel=kernel, progress=False)
    x, y = (cp.extract(net, data, "4", progress=False)["4"] for net in networks)
    assert result.values[0, 0] == pytest.approx(float(cp.cka(x, y, kernel=kernel)), abs=1e-6)
    assert result.meta["route"] == "grams"


def test_a_sketch_is_used_when_it_is_asked_for(networks):
    data = image_batches(12)
    exact = cp.compare(*networks, data, layers=["0", "4"], scope="dataset", progress=False)
    sketch = cp.compare(*networks, data, layers=["0", "4"], scope="dataset", route="sketch", progress=False)
    assert sketch.meta["route"] == "sketch"
    assert (np.abs(sketch.values - exact.values) < 5 * sketch.standard_error + 1e-9).all()
    assert (sketch.standard_error > 0).all()
    with pytest.raises(ValueError, match="the sketch has the unbiased estimator only"):
        cp.compare(*networks, data, layers="0", scope="dataset", estimator="biased", route="sketch", progress=False)


def test_a_constant_layer_gives_nan_and_leaves_other_layers_alone(networks):
    net = small_network(0)
    with torch.no_grad():
        net[4].weight.zero_()
    result = cp.compare(net, networks[1], image_batches(), scope="dataset", pooling="mean", progress=False)
    assert np.isnan(result.values[4]).all()
    assert np.isfinite(result.values[:4]).all()
    assert [note for note in result.notes if "constant over all samples" in note] == [
        "model_x (Sequential): '4' is constant over all samples, so its similarity is undefined"
    ]


def test_other_measures_equal_their_functions(networks):
    from cka_probe.estimators.measures.catalogue import MEASURES

    data = image_batches(3)
    x, y = (cp.extract(net, data, ["2", "4"], pooling="mean", progress=False) for net in networks)
    for measure in MEASURES:
        result = cp.compare(*networks, data, layers=["2", "4"], measure=measure, pooling="mean", progress=False)
        value = float(MEASURES[measure].function(x["2"], y["4"]))
        assert result.values[0, 1] == pytest.approx(value, nan_ok=True)
        assert result.measure == measure
        assert result.meta["scope"] == "dataset"


def test_many_models_on_the_whole_data_set(networks):
    data = image_batches(3)
    nets = dict(zip("ab", networks, strict=True))
    many = cp.compare_many(nets, data, layers=["2", "4"], scope="dataset", pooling="mean", progress=False)
    one = cp.compare(*networks, data, layers=["2", "4"], scope="dataset", pooling="mean", progress=False)
    np.testing.assert_allclose(many.values[:2, 2:], one.values, atol=1e-12)
    assert many.row_models == ("a", "a", "b", "b")


def test_errors_for_options_that_do_not_fit(networks):
    data = image_batches(2)
    with pytest.raises(ValueError, match='`scope` must be "minibatch" or "dataset", got \'epoch\''):
        cp.compare(*networks, data, scope="epoch", progress=False)
    with pytest.raises(ValueError, match="No measure is called 'cosine'"):
        cp.compare(*networks, data, measure="cosine", progress=False)
    with pytest.raises(ValueError, match="has no minibatch form"):
        cp.compare(*networks, data, measure="procrustes", scope="minibatch", progress=False)
    with pytest.raises(ValueError, match="does not use a kernel"):
        cp.compare(*networks, data, measure="procrustes", kernel=cp.RBF(), progress=False)
    with pytest.raises(cp.CaptureError, match="gave NaN or infinity in batch 1"):
        cp.compare(*networks, [data[0], data[1] * float("nan")], scope="dataset", progress=False)


@pytest.mark.parametrize("route", ["moments", "grams", "disk"])
def test_nan_that_is_looked_for_once_a_batch_names_layer_and_batch(networks, route, monkeypatch):
    monkeypatch.setattr(feature_keeper, "DEFERS", frozenset({"cpu"}))
    data = image_batches(3)
    exact = cp.compare(*networks, data, scope="dataset", route=route, progress=False)
    data[1] = data[1] * float("nan")
    with pytest.raises(cp.CaptureError, match=r"Layer '0' of model_x \(Sequential\) gave NaN or infinity in batch 1"):
        cp.compare(*networks, data, scope="dataset", route=route, progress=False)
    assert np.isfinite(exact.values).all()
