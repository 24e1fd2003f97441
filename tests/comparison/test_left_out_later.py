"""Layers that are left out after the first batch: nothing of them stays in the result, and the others are right."""

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import cka_probe as cp
from cka_probe.capture.extraction import extract
from cka_probe.comparison.places import selected
from cka_probe.comparison.processes import all_reduce
from cka_probe.estimators.minibatch import MinibatchCKA


class Experts(nn.Module):
    """Each sample goes to one of two experts. In the first batch all go to the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.experts, self.head = (
            nn.Linear(5, 6),
            nn.ModuleList(nn.Linear(6, 6) for _ in range(2)),
            nn.Tanh(),
        )

    def forward(self, x):
        second = x[:, 0] > 0
        h = self.stem(x)
        out = torch.zeros_like(h)
        for chosen, expert in zip((~second, second), self.experts, strict=True):
            if chosen.any():
                out[chosen] = expert(h[chosen])
        return self.head(out)


REST = ("stem", "head")


def batches(count=4, samples=9):
    generator = torch.Generator().manual_seed(1)
    found = [torch.randn(samples, 5, generator=generator) for _ in range(count)]
    found[0][:, 0] = -found[0][:, 0].abs()
    return found


def oracle(net, data):
    return reference_cka([cloned(net, batch, lambda name, _m: name in REST) for batch in data])


@pytest.mark.parametrize("square", [False, True])
def test_minibatch_cka(square):
    net, data = Experts(), batches()
    result = (
        cp.compare_many({"a": net, "b": nn.Sequential(nn.Linear(5, 3))}, data, progress=False)
        if square
        else cp.compare(net, net, data, progress=False)
    )
    assert result.rows == (*REST, "0") if square else REST
    assert_allclose(result.values[:2, :2], oracle(net, data), atol=1e-6)
    assert {name for name in ("experts.0", "experts.1") if repr(name) in " ".join(result.notes)} == {
        "experts.0",
        "experts.1",
    }
    assert not any("constant" in note for note in result.notes)
    assert np.isfinite(result.standard_error).all()


@pytest.mark.parametrize("options", [{}, {"kernel": cp.RBF()}, {"measure": "procrustes"}, {"estimator": "biased"}])
def test_the_whole_data_set(options):
    net, data = Experts(), batches(6)
    result = cp.compare(net, net, data, scope="dataset", progress=False, **options)
    expected = cp.compare(net, net, data, scope="dataset", layers=["stem", "head"], progress=False, **options)
    assert result.rows == result.columns == REST
    assert_allclose(result.values, expected.values, atol=1e-9)
    if result.standard_error is not None:
        assert_allclose(result.standard_error, expected.standard_error, atol=1e-9)
    assert any("'experts.0'" in note for note in result.notes)


def test_two_models_of_which_one_loses_a_layer():
    net, other, data = Experts(), nn.Sequential(nn.Linear(5, 3), nn.Tanh()), batches()
    for scope in ("minibatch", "dataset"):
        result = cp.compare(net, other, data, scope=scope, progress=False)
        expected = cp.compare(net, other, data, layers=["stem", "head"], layers_y="leaves", scope=scope, progress=False)
        assert result.rows == REST
        assert result.columns == ("0", "1")
        assert_allclose(result.values, expected.values, atol=1e-9)


def test_signatures_and_features():
    net, data = Experts(), batches()
    signature = cp.signature(net, data, progress=False)
    assert signature.layers == REST
    assert "'experts.0'" in str(signature.notes)
    assert_allclose(cp.compare_signatures(signature, signature).values, oracle(net, data), atol=1e-6)
    features = extract(net, data, progress=False)
    assert tuple(features) == REST
    assert len(features["head"]) == 36
    assert "'experts.0'" in str(features.notes)


class Interrupted:
    def __init__(self, data, after):
        self.data, self.after = data, after

    def __iter__(self):
        yield from self.data[: self.after]
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 4])
def test_a_resumed_run(tmp_path, after):
    net, data, path = Experts(), batches(7), tmp_path / "run.ckpt"
    cp.compare(net, net, Interrupted(data, after), checkpoint=path, progress=False)
    resumed = cp.compare(net, net, data, checkpoint=path, progress=False)
    assert resumed.rows == REST
    assert_array_equal(resumed.values, cp.compare(net, net, data, progress=False).values)


def test_a_pass_without_any_layer_left_is_an_error():
    net = Experts()
    with pytest.raises(cp.CaptureError, match=r"No selected layer of model_x .* can be compared\. .*'experts\.0': its"):
        cp.compare(net, net, batches(), layers="experts.*", progress=False)


def test_the_statistics_of_some_layers_are_those_of_these_layers_alone():
    generator = np.random.default_rng(0)
    whole, part = MinibatchCKA(estimator="biased"), MinibatchCKA(estimator="biased")
    for _ in range(3):
        xs = [torch.from_numpy(generator.normal(size=(8, 3))) for _ in range(4)]
        whole.update(xs[:3], xs[1:])
        part.update([xs[0], xs[2]], [xs[3]])
    found = selected(whole, [0, 2], [2])
    for name in part.sums:
        assert_allclose(found.sums[name], part.sums[name], atol=1e-12)
    assert_allclose(found.standard_error(), part.standard_error(), atol=1e-12)
    assert selected(whole, [0, 1, 2], [0, 1, 2]) is whole


# --- several processes --------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self, names, left_out):
        self.name, self.names, self.left_out = "model", names, left_out


@pytest.mark.parametrize("empty", [False, True])
def test_a_layer_that_one_process_left_out_is_left_out_in_all(monkeypatch, empty):
    """torch.distributed of two processes, played by hand: the other process has not run `b`."""
    import torch.distributed as dist

    generator = torch.Generator().manual_seed(0)
    xs, ys = torch.randn(2, 3, 8, 4, generator=generator, dtype=torch.float64)
    mine, other, expected = MinibatchCKA(), MinibatchCKA(), MinibatchCKA()
    if not empty:
        mine.update(list(xs))
        expected.update([xs[0], xs[2]])
    other.update([ys[0], ys[2]])
    expected.update([ys[0], ys[2]])
    names, left_out = ([], {}) if empty else (["a", "b", "c"], {})
    recorder = Recorder(names, left_out)

    def gather(parts, own):
        theirs = {
            "layers": [("model", ["a", "c"], {"b": "it did not run in the forward pass"})],
            "shapes": {name: tuple(total.shape) for name, total in other.sums.items()},
            "samples": 8,
            "batches": 1,
        }
        parts[:] = [own, theirs]

    order = iter(sorted(other.sums))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(other.sums[next(order)]))
    all_reduce(mine, [recorder], torch.device("cpu"))
    assert recorder.names == ["a", "c"]
    assert list(recorder.left_out) == ["b"]
    assert_allclose(mine.compute(), expected.compute(), atol=1e-12)
    assert (mine.samples, mine.batches) == (expected.samples, expected.batches)
