"""Small batches are joined to their neighbours; no loader is read while its batch is in use."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp
from cka_probe.capture.joining import join, joined_batches, none_is_small

Pair = namedtuple("Pair", "image target")


def test_join_concatenates_samples_in_every_kind_of_nesting():
    a = {"x": torch.ones(2, 3), "names": ["a", "b"], "pair": Pair(torch.ones(2), None), "size": 7}
    b = {"x": torch.zeros(1, 3), "names": ["c"], "pair": Pair(torch.zeros(1), None), "size": 7}
    joined = join(a, b)
    assert torch.equal(joined["x"], torch.tensor([[1.0] * 3, [1.0] * 3, [0.0] * 3]))
    assert joined["names"] == ["a", "b", "c"]
    assert isinstance(joined["pair"], Pair)
    assert torch.equal(joined["pair"].image, torch.tensor([1.0, 1.0, 0.0]))
    assert joined["pair"].target is None
    assert joined["size"] == 7
    assert a["x"].shape == (2, 3)


@dataclass
class Graph:
    nodes: torch.Tensor
    name: str | None = None


def test_join_of_dataclasses():
    joined = join([Graph(torch.ones(2))], [Graph(torch.zeros(1))])
    assert torch.equal(joined[0].nodes, torch.tensor([1.0, 1.0, 0.0]))
    assert join(Graph(torch.ones(2), "a"), Graph(torch.ones(2), "b")) is None
    assert join(Graph(torch.ones(2)), Pair(torch.ones(2), None)) is None


def test_join_of_named_tuples_without_tensors():
    assert join(Pair("a", 1), Pair("a", 1)) == Pair("a", 1)
    assert join(Pair("a", 1), Pair("b", 1)) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(2, 3), torch.ones(2)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        ({"x": torch.ones(2)}, {"y": torch.ones(2)}),
        ({"x": torch.ones(2), "t": 1}, {"x": torch.ones(2), "t": 2}),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2))),
        (torch.ones(2), "text"),
        ("text", torch.ones(2)),
        (["a"], [torch.ones(2)]),
        ([], ["a"]),
        ({"x": 1}, ["x"]),
        (object(), object()),
    ],
)
def test_join_returns_none_if_the_batches_do_not_fit(a, b):
    assert join(a, b) is None


def sizes_of(batches):
    return [(len(batch), count) for batch, count in batches]


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ([8, 8, 8], [(8, 1), (8, 1), (8, 1)]),
        ([8, 8, 2], [(8, 1), (10, 2)]),
        ([8, 2, 8], [(10, 2), (8, 1)]),
        ([2, 8, 8], [(10, 2), (8, 1)]),
        ([2, 2, 2, 2, 2], [(4, 2), (6, 3)]),
        ([1] * 7, [(7, 7)]),
        ([3, 3, 3, 3], [(6, 2), (6, 2)]),
        ([8, 1, 1, 1, 1], [(8, 1), (4, 4)]),
        ([4], [(4, 1)]),
        ([3, 1], [(4, 2)]),
    ],
)
def test_only_small_batches_are_joined(sizes, joined):
    samples = torch.arange(sum(sizes))
    notes = []
    found = list(joined_batches(samples.split(sizes), 4, notes))
    assert sizes_of(found) == joined
    assert torch.equal(torch.cat([batch for batch, _ in found]), samples), "every sample once, in order"
    assert not notes


def test_small_batches_are_joined_only_up_to_the_minimum():
    found = list(joined_batches([torch.zeros(2) for _ in range(1000)], 4, []))
    assert len(found) == 500


def test_batches_that_cannot_be_joined_are_left_out_with_a_note():
    notes = []
    batches = [torch.zeros(8, 3), torch.zeros(2, 5), torch.zeros(8, 3)]
    assert sizes_of(joined_batches(batches, 4, notes)) == [(8, 1), (8, 1)]
    reason = "at least 4 are needed and it could not be joined to another"
    assert notes == [f"a batch of 2 samples was left out: {reason}"]
    notes.clear()
    assert sizes_of(joined_batches([torch.zeros(1, 5), torch.zeros(8, 3), torch.zeros(3, 5)], 4, notes)) == [(8, 1)]
    assert notes == [f"a batch of {n} samples was left out: {reason}" for n in (1, 3)]


def test_two_small_neighbours_of_different_shape():
    notes = []
    batches = [torch.zeros(8, 3), torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(8, 5)]
    assert sizes_of(joined_batches(batches, 4, notes)) == [(10, 2), (10, 2)]
    assert not notes


@pytest.mark.parametrize(
    ("samples", "batch", "drop_last", "whole"),
    [(16, 8, False, True), (20, 8, False, True), (18, 8, False, False), (18, 8, True, True)],
)
def test_each_batch_is_yielded_at_once_if_the_loader_has_no_small_batch(samples, batch, drop_last, whole):
    class Watched(TensorDataset):
        def __getitem__(self, index):
            drawn.append(index)
            return super().__getitem__(index)

    drawn, seen = [], []
    loader = DataLoader(Watched(torch.randn(samples, 5)), batch_size=batch, drop_last=drop_last)
    assert none_is_small(loader, 4) == whole
    net = nn.Linear(5, 3)
    net.register_forward_pre_hook(lambda *_: seen.append(len(drawn)))
    result = cp.compare(net, net, loader, layers="", progress=False)
    assert seen[0] == (batch if whole else min(2 * batch, samples))
    assert result.meta["samples"] == (samples if not drop_last else samples // batch * batch)


def test_a_subclass_of_the_loader_may_have_small_batches():
    class Odd(DataLoader):
        pass

    data = TensorDataset(torch.randn(16, 5))
    assert not none_is_small(Odd(data, batch_size=8), 4)
    assert not none_is_small(DataLoader(data, batch_size=None), 4)
    assert not none_is_small(DataLoader(data, batch_size=2), 4)
    assert not none_is_small(torch.randn(16, 5).split(8), 4)


def test_batches_of_unknown_size_are_passed_on():
    batches = ["a", "b", "c"]
    assert list(joined_batches(batches, 4, [])) == [("a", 1), ("b", 1), ("c", 1)]


def test_no_batches():
    assert list(joined_batches([], 4, [])) == []


def test_arrays_are_joined():
    joined = join({"x": np.ones((2, 3)), "y": np.zeros(2)}, {"x": np.zeros((1, 3)), "y": np.ones(1)})
    np.testing.assert_array_equal(joined["x"], [[1] * 3, [1] * 3, [0] * 3])
    np.testing.assert_array_equal(joined["y"], [0, 0, 1])
    assert join(np.ones((2, 3)), np.ones((2, 4))) is None
    assert join(np.ones(2), np.ones(2, dtype=np.float32)) is None
    assert join(np.ones(2), torch.ones(2)) is None


def test_samples_on_another_axis_are_joined_there():
    joined = join((torch.ones(5, 2, 3), torch.ones(2)), (torch.zeros(5, 1, 3), torch.zeros(1)), axis=1)
    assert joined[0].shape == (5, 3, 3)
    assert joined[1].tolist() == [1, 1, 0]
    assert join(torch.ones(5, 2, 3), torch.ones(4, 2, 3), axis=1) is None


def test_packed_and_nested_tensors_are_not_joined():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    assert join(packed, packed) is None
    assert join(nested, nested) is None


# --- one tensor for all batches ---------------------------------------------------------------------------------------


def refilled(sizes, buffer=None):
    """One buffer for all batches, filled with -1 once a batch is done with."""
    buffer = torch.empty(max(sizes)) if buffer is None else buffer
    start = 0
    for size in sizes:
        view = buffer[:size]
        view[:] = torch.arange(start, start + size, dtype=torch.float32)
        start += size
        yield view
        view[:] = -1


@pytest.mark.parametrize("sizes", [[8, 8, 8], [8, 8, 2], [8, 2, 8], [2, 8, 8], [2, 2, 2, 2, 2], [8, 1, 1, 1, 1]])
@pytest.mark.parametrize("minimum", [1, 4])
def test_a_loader_may_fill_one_tensor_for_all_batches(sizes, minimum):
    seen = []
    for batch, _ in joined_batches(refilled(sizes), minimum, []):
        seen.append(batch.clone())
    assert torch.cat(seen).tolist() == list(range(sum(sizes)))


def test_with_a_minimum_of_one_a_batch_is_used_before_the_next_one_is_read():
    read, used = [], []

    def loader():
        for i in range(3):
            read.append(i)
            yield torch.zeros(2)

    for _ in joined_batches(loader(), 1, []):
        used.append(list(read))
    assert used == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("minimum", [1, 4])
def test_an_empty_batch_is_passed_over(minimum):
    notes = []
    found = list(joined_batches([torch.ones(0, 2), torch.ones(5, 2), torch.ones(0, 2)], minimum, notes))
    assert [len(batch) for batch, _ in found] == [5]
    assert not notes


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_only_empty_batches(scope):
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="No batch could be used: every batch is empty"):
        cp.compare(net, net, [torch.ones(0, 3)], layers="", scope=scope, progress=False)
