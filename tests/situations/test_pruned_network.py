"""A pruned network (`torch.nn.utils.prune`): before each forward, a hook multiplies the weight with a mask."""

import copy

import torch
from situation import check, check_notes
from torch import nn
from torch.nn.utils import prune

import cka_probe as cp


def test_before_while_and_after_pruning():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    pruned, permanent = copy.deepcopy(dense), copy.deepcopy(dense)
    for layer in (*pruned[::2], *permanent[::2]):
        prune.l1_unstructured(layer, "weight", amount=0.6)
    for layer in permanent[::2]:
        prune.remove(layer, "weight")
    batches = [torch.randn(8, 6) for _ in range(3)]
    result = cp.compare_many({"dense": dense, "pruned": pruned, "permanent": permanent}, batches, progress=False)
    assert result.rows == tuple("01234") * 3
    check_notes(result)
    for kind in (pruned, permanent):
        pair = cp.compare(dense, kind, batches, progress=False)
        check(pair, dense, batches, permanent)
    torch.testing.assert_close(torch.tensor(result.values[5:10, :5]), torch.tensor(result.values[10:, :5]))
    assert prune.is_pruned(pruned)


def test_a_unit_that_pruning_switched_off_is_constant_and_in_a_note():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    prune.random_unstructured(net[0], "weight", amount=1.0)
    result = cp.compare(net, net, [torch.randn(8, 6) for _ in range(2)], progress=False)
    assert result.values.shape == (3, 3)
    assert not (result.values == result.values).any()
    check_notes(result, r"constant.*'0', '1', '2'")
