"""extract: features of every layer, budget and buffers, precision, notes and errors."""

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.capture.buffers import Budget, FeatureBuffer, as_cupy


def expected_features(net, batches):
    """Activation of every leaf, cloned before a later operation in place can change it."""
    found = {}

    def keep(name):
        return lambda _module, _inputs, output: found.setdefault(name, []).append(output.detach().clone().flatten(1))

    handles = [module.register_forward_hook(keep(name)) for name, module in net.named_children()]
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_later_operations_in_place_do_not_change_features():
    net, data = small_network(0), image_batches()
    features = cp.extract(net, data, progress=False)
    expected = expected_features(net, data)
    assert list(features) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(features[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("folder", [False, True])
def test_layers_above_the_budget_are_moved_with_a_note_and_have_the_same_values(folder, tmp_path):
    net, data = small_network(0), image_batches()
    everything = cp.extract(net, data, progress=False)
    rows = 6 * 12 * 4
    limited = cp.extract(net, data, progress=False, budget=rows * (96 + 5), folder=tmp_path if folder else None)
    moved = [name for name in limited if any(repr(name) in note for note in limited.notes)]
    assert moved
    assert len(moved) < len(limited)
    for name in limited:
        torch.testing.assert_close(limited[name], everything[name], rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == (len(moved) if folder else 0)


def test_features_have_the_stated_dtype():
    features = cp.extract(small_network(0), image_batches(2), "4", dtype=torch.bfloat16, progress=False)
    assert features["4"].dtype == torch.bfloat16
    assert features["4"].shape == (24, 5)


@pytest.mark.parametrize("rows", [None, 7, 100])
def test_a_buffer_grows_as_needed(rows):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, generator=generator) for n in (1, 4, 2, 9)]
    buffer = FeatureBuffer(rows=rows)
    for part in parts:
        buffer.append(part)
    torch.testing.assert_close(buffer.rows(), torch.cat(parts), rtol=0, atol=0)
    with pytest.raises(ValueError, match="width 2, those before had 3"):
        buffer.append(torch.zeros(1, 2))


def test_an_empty_buffer_and_a_negative_budget_are_errors():
    with pytest.raises(ValueError, match="No features were appended"):
        FeatureBuffer().rows()
    with pytest.raises(ValueError, match="`budget` must be a number of bytes"):
        Budget(-1)


def test_the_error_for_a_missing_cupy_says_how_to_install_it():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; tests/gpu covers CuPy")
    with pytest.raises((ModuleNotFoundError, RuntimeError), match=r"[Cc]u[Pp]y"):
        cp.extract(small_network(0), image_batches(1), backend="cupy", progress=False)
    with pytest.raises((ModuleNotFoundError, RuntimeError), match=r"[Cc]u[Pp]y"):
        as_cupy(torch.zeros(2, 2))
    with pytest.raises(ValueError, match='`backend` must be "torch" or "cupy", got \'jax\''):
        cp.extract(small_network(0), image_batches(1), backend="jax", progress=False)


def test_the_error_for_nan_names_the_layer_and_the_batch():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    data = [torch.zeros(8, 4), torch.full((8, 4), float("nan"))]
    with pytest.raises(cp.CaptureError, match=r"Layer '0' of model \(Sequential\) gave NaN or infinity in batch 1"):
        cp.extract(net, data, progress=False)


def test_notes_name_the_layers_that_were_left_out():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    features = cp.extract(Two(), torch.ones(5, 4), progress=False)
    assert list(features) == ["used"]
    assert features.notes == ("'unused' was left out: it did not run in the forward pass",)
    np.testing.assert_array_equal(features["used"].shape, (5, 3))
