"""Ensembles by ``torch.vmap`` over stacked weights: inside, an activation is a batched tensor, not plain numbers."""

import copy

import pytest
import torch
from numpy.testing import assert_allclose
from situation import activations, check_notes, values_of
from torch import nn
from torch.func import functional_call, stack_module_state

import cka_probe as cp


def ensemble():
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)) for _ in range(3)]
    return members, copy.deepcopy(members[0]), *stack_module_state(members)


def test_inside_vmap_the_error_names_the_layer():
    _, skeleton, weights, buffers = ensemble()

    def run(model, batch):
        return torch.vmap(lambda w, b: functional_call(model, (w, b), (batch,)))(weights, buffers)

    with pytest.raises(RuntimeError, match="vmap") as caught:
        cp.compare(skeleton, skeleton, [torch.randn(8, 5)], forward=run, progress=False)
    assert any("layer '0' of Sequential" in note for note in caught.value.__notes__)
    assert not skeleton[0]._forward_hooks


def test_one_member_of_the_stack_at_a_time():
    members, skeleton, weights, _ = ensemble()
    batches = [torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]

    def run(model, batch):
        return functional_call(model, {name: value[2] for name, value in weights.items()}, (batch,))

    result = cp.compare(skeleton, skeleton, batches, forward=run, progress=False)
    assert_allclose(result.values, values_of(activations(members[2], batches, result.rows)), atol=1e-6)
    check_notes(result)
