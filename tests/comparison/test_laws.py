"""Six laws of a correct comparison: our comparison keeps each law, and a flaw of a published tool breaks it.

``simple`` below is a comparison as it is commonly written. Without a flaw it keeps every law, so the checks are fair.
"""

import contextlib

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import Branches, Constant, Shifted
from torch import nn

import cka_probe as cp


def ours(model_x, model_y, data):
    result = cp.compare(model_x, model_y, data, progress=False)
    return result.rows, result.columns, result.values


def simple(model_x, model_y, data, flaw=None):
    """Minibatch CKA over all leaves in float32, with one flaw."""

    def features(model, batch):
        found, calls = {}, {}

        def watch(name):
            def hook(_module, _inputs, output):
                calls[name] = calls.get(name, 0) + 1
                key = name if calls[name] == 1 or flaw == "overwrites the first call" else f"{name}#{calls[name]}"
                found[key] = output if flaw == "keeps a reference" else output.clone()

            return hook

        leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
        handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
        training = model.training
        model.eval()
        if flaw == "does not clean up":
            model(batch)
            for handle in handles:
                handle.remove()
        else:
            try:
                with torch.no_grad():
                    model(batch)
            finally:
                for handle in handles:
                    handle.remove()
                model.train(training)
        return {name: x.detach().flatten(1).float() for name, x in found.items()}

    def u_centred(x):
        n = len(x)
        if flaw != "does not centre":
            x = x - x[0]
            x = x - x.mean(0)
        if flaw == "scales each batch by itself":
            x = x / x.abs().max()
        K = (x @ x.T).double().fill_diagonal_(0)
        if flaw == "does not centre":
            K = K.float()
        rows = K.sum(1, keepdim=True) / (n - 2)
        A = (K - rows - rows.T + rows.sum() / (n - 1)).fill_diagonal_(0)
        return A.double().flatten()

    def hsic(left, right, n):
        L = torch.stack([u_centred(x) for x in left.values()])
        R = torch.stack([u_centred(x) for x in right.values()])
        return (L @ R.T / (n * (n - 3))).numpy()

    def ratio(cross, sx, sy):
        if flaw == "adds an epsilon":
            return cross / (np.sqrt(sx[:, None] * sy[None, :]) + 1e-6)
        with np.errstate(divide="ignore", invalid="ignore"):
            return cross / np.sqrt(sx)[:, None] / np.sqrt(sy)[None, :]

    batches = list(data)
    second = list(data) if flaw == "goes over the data twice" else batches
    if flaw is None and len(batches[-1]) < 4:
        batches = second = [*batches[:-2], torch.cat(batches[-2:])]
    sums, ratios = [0.0, 0.0, 0.0], []
    for batch_x, batch_y in zip(batches, second, strict=True):
        x = features(model_x, batch_x)
        y = x if model_y is model_x and flaw != "runs the same model twice" else features(model_y, batch_y)
        n = len(batch_x)
        parts = hsic(x, y, n), np.diag(hsic(x, x, n)), np.diag(hsic(y, y, n))
        weight = 1 if flaw == "weighs all batches alike" else n
        sums = [total + weight * part for total, part in zip(sums, parts, strict=True)]
        ratios.append(ratio(*parts))
    values = np.mean(ratios, axis=0) if flaw == "takes the mean of ratios" else ratio(*sums)
    return tuple(x), tuple(y), np.clip(values, 0, 1) if flaw == "clamps" else values


def broken_by(*flaws):
    """Check a law on our comparison, on `simple`, and on `simple` with each flaw, where the check must fail."""
    return pytest.mark.parametrize("flaw", ["ours", "none", *flaws])


def hold(law, flaw):
    if flaw == "ours":
        law(ours)
    elif flaw == "none":
        law(simple)
    else:
        with pytest.raises((AssertionError, ZeroDivisionError, RuntimeError)):
            law(lambda x, y, data: simple(x, y, data, flaw))


def normal(*sizes, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator) for n in sizes]


def check_values(compare, net_x, net_y, batches, joined=None):
    _, _, values = compare(net_x, net_y, batches)
    oracle = joined or batches
    expected = reference_cka([cloned(net_x, b) for b in oracle], [cloned(net_y, b) for b in oracle])
    assert_allclose(values, expected, atol=1e-6)


def network(seed=0, *, inplace=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(inplace), nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(inplace), nn.Linear(16, 3)
    )


# 1. The Gram is taken inside the hook --------------------------------------------------------------------------------


@broken_by("keeps a reference")
def test_law_1_an_in_place_operation_after_a_layer_changes_nothing(flaw):
    hold(lambda compare: check_values(compare, network(0), network(1), normal(30, 30)), flaw)


ALIVE, MOST = [], []
"""Outputs still alive, and their numbers. Not in attributes: `compare` runs a network with state once more."""


class Watched(nn.Module):
    """Counts how many outputs of `Watched` layers are still alive when it makes its own."""

    def forward(self, x):
        import gc
        import weakref

        out = x * 1.01
        gc.collect()
        ALIVE[:] = [ref for ref in ALIVE if ref() is not None]
        MOST.append(len(ALIVE))
        ALIVE.append(weakref.ref(out))
        return out


def test_law_1_memory_does_not_grow_with_depth():
    """While a layer runs, at most one earlier output is still alive."""
    ALIVE.clear()
    MOST.clear()
    net = nn.Sequential(*(Watched() for _ in range(12)))
    cp.compare(net, net, normal(10), progress=False)
    assert len(MOST) >= 12
    assert max(MOST) <= 1
    # Negative control: a comparison that keeps references.
    ALIVE.clear()
    MOST.clear()
    simple(net, net, normal(10), "keeps a reference")
    assert max(MOST) == 11


# 2. Accurate for any mean and scale; never clamped -------------------------------------------------------------------


@broken_by("does not centre")
@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_law_2_a_mean_far_above_the_spread(flaw, mean):
    net = nn.Sequential(Shifted(mean, 1.0), nn.BatchNorm1d(12), nn.Tanh())
    net[1].running_mean.fill_(mean)
    hold(lambda compare: check_values(compare, net, net, normal(64, 64)), flaw)


@broken_by("adds an epsilon")
@pytest.mark.parametrize("scale", [1e-6, 1e-10])
def test_law_2_tiny_activations(flaw, scale):
    net = nn.Sequential(Shifted(0.0, scale), nn.Tanh())
    hold(lambda compare: check_values(compare, net, net, normal(64, 64)), flaw)


@broken_by("clamps")
def test_law_2_unrelated_features_have_a_mean_of_zero(flaw):
    """At 16 samples the values lie on both sides of 0; clamping at 0 would raise their mean over 60 pairs."""

    def law(compare):
        generator = torch.Generator().manual_seed(0)
        values = []
        for _ in range(60):
            pair = torch.randn(16, 12, generator=generator)
            values.append(compare(First(), Second(), [pair])[2][0, 0])
        assert abs(np.mean(values)) < 2.5 * np.std(values) / np.sqrt(60)
        assert min(values) < -0.02

    class First(nn.Module):
        def forward(self, x):
            return x[:, :6]

    class Second(nn.Module):
        def forward(self, x):
            return x[:, 6:]

    hold(law, flaw)


# 3. A constant layer is NaN with a note; the others stay right -------------------------------------------------------


@broken_by("adds an epsilon", "does not centre")
def test_law_3_a_constant_layer_is_nan_and_leaves_others_alone(flaw):
    net = Branches(nn.Tanh(), Constant(0.3), nn.ReLU())

    def law(compare):
        values = compare(net, net, normal(20, 20))[2]
        assert np.isnan(values[1]).all()
        assert np.isnan(values[:, 1]).all()
        expected = reference_cka([cloned(net, b) for b in normal(20, 20)])
        assert_allclose(values[np.ix_([0, 2], [0, 2])], expected[np.ix_([0, 2], [0, 2])], atol=1e-6)

    hold(law, flaw)


def test_law_3_notes_name_the_constant_layer_and_errors_the_layer_with_nan():
    net = Branches(nn.Tanh(), Constant(0.3))
    notes = cp.compare(net, net, normal(20), progress=False).notes
    assert any("'parts.1' is constant" in note for note in notes)
    broken = Branches(nn.Tanh(), Constant(float("nan")))
    with pytest.raises(cp.CaptureError, match=r"Layer 'parts.1' of model_x \(Branches\) gave NaN .* in batch 0"):
        cp.compare(broken, broken, normal(20), progress=False)
    # Other tools return NaN without an error.
    assert np.isnan(simple(broken, broken, normal(20))[2]).any()


# 4. Batches of unequal size ------------------------------------------------------------------------------------------


@broken_by("weighs all batches alike", "takes the mean of ratios", "scales each batch by itself")
def test_law_4_batches_weigh_by_their_samples(flaw):
    hold(lambda compare: check_values(compare, network(0), network(1), normal(40, 8, 20)), flaw)


@broken_by("weighs all batches alike", "takes the mean of ratios")
@pytest.mark.parametrize("last", [1, 2, 3])
def test_law_4_a_small_last_batch_is_not_lost(flaw, last):
    batches = normal(16, 16, last)
    joined = [batches[0], torch.cat(batches[1:])]
    hold(lambda compare: check_values(compare, network(0), network(1), batches, joined), flaw)


# 5. Both models see the same samples, in one pass --------------------------------------------------------------------


class Shuffled:
    """A loader that gives another order in every pass, as loaders for training do."""

    def __init__(self):
        self.passes = 0
        self.samples = torch.cat(normal(60))

    def __iter__(self):
        self.passes += 1
        generator = torch.Generator().manual_seed(self.passes)
        return iter(self.samples[torch.randperm(60, generator=generator)].split(20))


@broken_by("goes over the data twice")
def test_law_5_both_models_see_the_same_samples(flaw):
    def law(compare):
        loader = Shuffled()
        _, _, values = compare(network(0), network(1), loader)
        first = list(Shuffled())
        expected = reference_cka([cloned(network(0), b) for b in first], [cloned(network(1), b) for b in first])
        assert_allclose(values, expected, atol=1e-6)
        assert loader.passes == 1

    hold(law, flaw)


@broken_by("runs the same model twice")
def test_law_5_the_same_model_runs_once(flaw):
    def law(compare):
        net = network()
        runs = []
        net.register_forward_pre_hook(lambda *_: runs.append(1))
        compare(net, net, normal(20, 20, 20))
        assert len(runs) == 3

    hold(law, flaw)


# 6. Every kind of module; everything is restored ---------------------------------------------------------------------


class Twice(nn.Module):
    """Calls one ReLU and one linear layer twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.relu = nn.Linear(12, 12), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.linear(self.relu(self.linear(x))))


@broken_by("overwrites the first call")
def test_law_6_a_layer_that_runs_twice_is_two_layers(flaw):
    def law(compare):
        net = Twice()
        rows, _, _ = compare(net, net, normal(30))
        assert rows == ("linear", "relu", "linear#2", "relu#2")
        check_values(compare, net, net, normal(30))

    hold(law, flaw)


class Falls(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return x


@broken_by("does not clean up")
@pytest.mark.parametrize("error", [ValueError("out of luck"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_law_6_hooks_modes_and_gradients_are_restored(flaw, error):
    def law(compare):
        net = nn.Sequential(nn.Linear(12, 4), nn.Dropout(), Falls(error))
        with contextlib.suppress(ValueError, KeyboardInterrupt):
            compare(net, net, normal(10, 10, 10))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert all(m.training for m in net.modules())
        assert torch.is_grad_enabled()

    hold(law, flaw)
