"""The recorder: repeated outputs, wrapped models, and the outputs that it refuses."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from small_networks import Branches, image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.capture.recorder import LayerRecorder


def test_an_output_that_is_the_input_is_measured_once_and_has_two_names():
    """Dropout in eval mode and Identity return their input, so that `keep` need not be called again."""
    measured = []

    def keep(name, features):
        measured.append(name)
        return features.clone()

    class Inplace(nn.Module):
        def forward(self, x):
            return x.mul_(2.0)

    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Identity(), Inplace(), nn.Identity())
    recorder = LayerRecorder(net.eval(), "model", "leaves", "auto", keep)
    with torch.no_grad(), recorder.probe:
        kept, _ = recorder.run(torch.ones(5, 3), 0, 5)
    assert recorder.names == ["0", "1", "2", "3", "4"]
    assert measured == ["0", "3"]
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[3], 2 * kept[0])


def test_inference_mode_counts_no_versions_so_each_output_is_measured():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Identity())
    batch = torch.randn(8, 3)
    with torch.inference_mode():
        inside = cp.compare(net, net, batch, progress=False)
    assert_allclose(inside.values, cp.compare(net, net, batch, progress=False).values, atol=1e-7)


# --- wrappers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    ],
    ids=["DataParallel", "compile", "both"],
)
def test_wrapped_models_give_the_same_values_and_names(wrap):
    net, batches = small_network(0), image_batches()
    plain = cp.compare(net, net, batches, progress=False)
    wrapped = cp.compare(wrap(net), net, batches, progress=False)
    assert wrapped.rows == plain.rows
    assert np.array_equal(wrapped.values, plain.values)
    assert wrapped.meta["model_x"] == "Sequential"


@pytest.mark.parametrize("part", [False, True])
def test_a_model_compiled_in_place(part):
    net, batches = small_network(0), image_batches()
    plain = cp.compare(net, net, batches, progress=False)
    for module in [net[0], net[4]] if part else [net]:
        module.compile(backend="eager")
    with torch.no_grad():
        net(batches[0])
    assert np.array_equal(cp.compare(net, net, batches, progress=False).values, plain.values)


# --- outputs that cannot be compared ------------------------------------------------------------------------------


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


UNFIT = [
    (lambda x: x.round().to(torch.uint8), r"its output is of dtype torch\.uint8"),
    (lambda x: x.argmax(1), r"its output is of dtype torch\.int64"),
    (lambda x: x > 0, r"its output is of dtype torch\.bool"),
    (lambda x: x.to(torch.complex64), r"its output is of dtype torch\.complex64"),
    (lambda x: x.sum(), r"its output is a single number"),
    (lambda x: x[:, :0], r"its output is empty, of shape \(10, 0\)"),
    (lambda x: x.T, r"its output has shape \(4, 10\), so axis 0 does not hold the 10 samples of the batch"),
]


@pytest.mark.parametrize(("function", "reason"), UNFIT)
def test_an_unfit_output_is_left_out_or_an_error_if_it_was_named(function, reason):
    net = Branches(nn.Identity(), Function(function))
    batch = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("parts.0",)
    (note,) = result.notes
    with pytest.raises(AssertionError, match="^" + r"model_x \(Branches\): 'parts\.1' was left out: " + reason + "$"):
        raise AssertionError(note)
    with pytest.raises(
        cp.CaptureError, match=r"Layer 'parts\.1' of model_x \(Branches\) cannot be compared: " + reason + r"\."
    ):
        cp.compare(net, net, batch, layers=["parts.0", "parts.1"], progress=False)


def test_many_layers_with_one_reason_share_a_note():
    net = Branches(nn.Identity(), *(Function(lambda x: x > 0) for _ in range(9)))
    (note,) = cp.compare(net, net, torch.randn(10, 4), progress=False).notes
    assert note == (
        "model_x (Branches): 'parts.1', 'parts.2', 'parts.3', 'parts.4', 'parts.5', 'parts.6' and 3 more were left "
        "out: its output is of dtype torch.bool"
    )


def test_a_model_without_fit_outputs_is_an_error():
    net = Branches(Function(lambda x: x > 0))
    with pytest.raises(
        cp.CaptureError,
        match=r"No selected layer of model_x \(Branches\) can be compared\. 'parts\.0': its output is of",
    ):
        cp.compare(net, net, torch.randn(10, 4), progress=False)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.used(x), self.unused.weight)


def test_a_layer_that_does_not_run_is_left_out_or_an_error_if_it_was_named():
    net, batch = Unused(), torch.randn(10, 4)
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("used",)
    assert result.notes == ("model_x (Unused): 'unused' was left out: it did not run in the forward pass",)
    with pytest.raises(
        cp.CaptureError,
        match=r"Layer 'unused' of model_x \(Unused\) was selected by name but did not run .* choose the module around",
    ):
        cp.compare(net, net, batch, layers=["used", "unused"], progress=False)


class Changing(nn.Module):
    """Runs another layer from the second batch on."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.b(self.a(x)) if self.calls == 1 else self.a(x)


def test_a_layer_that_runs_in_some_batches_only_is_left_out_or_an_error_if_it_was_named():
    batches = [torch.randn(10, 4)] * 2
    net = Changing()
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("a",)
    assert "model_x (Changing): 'b' was left out: it ran in some batches only" in result.notes
    with pytest.raises(
        cp.CaptureError,
        match=r"Layer 'b' of model_x \(Changing\) cannot be compared in batch 1: it ran in some batches only\.",
    ):
        cp.compare(Changing(), Changing(), batches, layers=["a", "b"], progress=False)


def test_a_layer_whose_output_becomes_unfit_is_left_out_or_an_error_if_it_was_named():
    net = Branches(nn.Identity(), Function(lambda x: x if len(x) == 10 else x.T))
    batches = [torch.randn(10, 4), torch.randn(8, 4)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("parts.0",)
    assert len(result.notes) == 1
    with pytest.raises(
        cp.CaptureError, match=r"Layer 'parts\.1' of .* cannot be compared in batch 1: its output has shape \(4, 8\)"
    ):
        cp.compare(net, net, batches, layers=["parts.0", "parts.1"], progress=False)


def test_models_with_different_numbers_of_positions_are_an_error():
    first, second = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(
        ValueError,
        match=r"Batch 0 gives 96 rows of features in model_x \(Sequential\) and 216 in model_y .* the same positions\.",
    ):
        cp.compare(first, second, torch.randn(6, 3, 6, 6), pooling="spatial", progress=False)
