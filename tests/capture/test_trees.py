"""Walk, move and rebuild nested tensors; the tensor that stands for a layer's output."""

import ctypes
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import cka_probe as cp
from cka_probe.capture.trees import alike, copied, first_tensor, move, parts, samples_first, tensors

META = torch.device("meta")
Pair = namedtuple("Pair", "image target")
Edges = namedtuple("Edges", "start to")


@dataclass(frozen=True)
class Output:
    """A dataclass as a model of a user may return it; `count` is no argument of its constructor."""

    state: Any
    weights: Any = None
    count: int = field(default=3, init=False)


@pytest.fixture
def xs():
    return [torch.full((2,), float(i)) for i in range(5)]


# --- walking --------------------------------------------------------------------------------------------------------


def test_every_tensor_is_found_in_order(xs):
    a, b, c, d, e = xs
    tree = (a, [None, {"x": b, "name": "text"}], Pair(c, 4), Output(d, (e,)))
    found = list(tensors(tree))
    assert len(found) == 5
    assert all(one is other for one, other in zip(found, xs, strict=True))


@pytest.mark.parametrize("leaf", [None, "text", 3, {1, 2}, object(), Output, torch.float32])
def test_other_objects_are_leaves_without_tensors(leaf):
    assert parts(leaf) is None
    assert list(tensors(leaf)) == []
    assert move(leaf, META) is leaf


def test_a_tensor_has_no_parts(xs):
    assert parts(xs[0]) is None


@pytest.mark.parametrize("empty", [(), [], {}])
def test_an_empty_container(empty):
    assert list(parts(empty)) == list(tensors(empty)) == []
    assert move(empty, META) == empty


# --- rebuilding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [(1, 2), [1, 2], Pair(1, 2), {"a": 1, "b": 2}, OrderedDict(a=1, b=2), UserDict(a=1, b=2)],
    ids=["tuple", "list", "named tuple", "dict", "OrderedDict", "UserDict"],
)
def test_a_container_is_rebuilt_with_other_parts(tree):
    assert list(parts(tree)) == [1, 2]
    rebuilt = alike(tree, [3, 4])
    assert type(rebuilt) is type(tree)
    assert list(parts(rebuilt)) == [3, 4]
    assert list(parts(tree)) == [1, 2], "the container itself is not changed"


def test_a_dataclass_is_rebuilt_field_by_field():
    tree = Output(1, 2)
    rebuilt = alike(tree, [4, 5, 6])
    assert (rebuilt.state, rebuilt.weights, rebuilt.count) == (4, 5, 6)
    assert (tree.state, tree.weights, tree.count) == (1, 2, 3)


# --- moving ---------------------------------------------------------------------------------------------------------


def test_moving_keeps_the_classes_of_containers():
    class Graph:
        def to(self, device):
            return ("moved", device)

    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    batch = Pair((torch.ones(2), "name", Graph()), OrderedDict(x=[torch.ones(3)], packed=packed))
    moved = move(batch, META)
    assert isinstance(moved, Pair)
    assert moved.image[0].device == META
    assert moved.image[1:] == ("name", ("moved", META))
    assert isinstance(moved.target, OrderedDict)
    assert moved.target["x"][0].device == META
    assert moved.target["packed"].data.device == META
    assert moved.target["packed"].batch_sizes.device.type == "cpu"
    assert batch.image[0].device.type == "cpu", "the batch itself is not changed"
    assert batch.target["x"][0].device.type == "cpu"


def test_a_dataclass_is_moved(xs):
    batch = Output(xs[0], [xs[1]])
    moved = move(batch, META)
    assert type(moved) is Output
    assert moved.state.device == moved.weights[0].device == META
    assert moved.count == 3
    assert batch.state is xs[0]


def test_a_field_named_to_is_no_method(xs):
    moved = move(Edges(xs[0], xs[1]), META)
    assert isinstance(moved, Edges)
    assert moved.to.device == META


def test_the_targets_of_a_detector_are_moved():
    targets = [{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3), "name": "a"}]
    moved = move((torch.zeros(1, 3, 8, 8), targets), META)
    assert type(moved) is tuple
    assert moved[1][0]["boxes"].device == moved[1][0]["labels"].device == META
    assert moved[1][0]["name"] == "a"
    assert targets[0]["boxes"].device.type == "cpu"


def test_a_batch_encoding_keeps_its_attributes():
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": torch.ones(2, 3)})
    moved = move(batch, META)
    assert moved.input_ids.device.type == "meta"
    assert batch.input_ids.device.type == "cpu"


def test_a_model_output_keeps_its_class():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.BaseModelOutput(last_hidden_state=torch.ones(2, 3), hidden_states=(torch.ones(2), torch.ones(2)))
    moved = move(output, META)
    assert type(moved) is outputs.BaseModelOutput
    assert [x.device for x in tensors(moved)] == [META] * 3
    assert moved.last_hidden_state is moved["last_hidden_state"]
    assert output.last_hidden_state.device.type == "cpu"


def test_a_mapping_that_cannot_be_changed_becomes_a_dict():
    moved = move(MappingProxyType({"x": torch.ones(2)}), META)
    assert type(moved) is dict
    assert moved["x"].device.type == "meta"


# --- the tensor that stands for an output ---------------------------------------------------------------------------


def test_the_tensor_that_stands_for_an_output():
    x, y = torch.ones(2), torch.zeros(2)
    assert first_tensor(x) is x
    assert first_tensor((None, [x, y])) is x
    assert first_tensor({"past": y, "last_hidden_state": x}) is x
    assert first_tensor({"loss": y, "logits": x}) is x
    assert first_tensor((None, {"loss": y, "logits": x})) is x
    assert first_tensor({"a": None, "b": x}) is x
    assert first_tensor(Output(None, [x])) is x
    assert first_tensor([]) is None
    assert first_tensor("text") is None


def test_the_output_of_a_hugging_face_model_is_its_last_hidden_state():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    x = torch.ones(2, 3, 4)
    assert first_tensor(outputs.BaseModelOutput(last_hidden_state=x, hidden_states=(x * 2,))) is x
    assert first_tensor(outputs.CausalLMOutput(loss=torch.tensor(1.0), logits=x)) is x


def test_a_layer_that_returns_a_dataclass_is_compared():
    class Returns(nn.Module):
        def forward(self, x):
            return Output(x)

    net, batch = nn.Sequential(nn.Linear(3, 4), Returns()), torch.randn(8, 3)
    result = cp.compare(net, net, batch, progress=False)
    assert result.rows == ("0", "1")
    assert result.values[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention])
@pytest.mark.parametrize("batch_first", [True, False])
def test_samples_are_put_first(layer, batch_first):
    module = layer(4, 2, batch_first=batch_first)
    x = torch.randn(5, 3, 4)
    assert torch.equal(samples_first(module, x), x if batch_first else x.transpose(0, 1))
    matrix = x[0]
    assert samples_first(module, matrix) is matrix
    assert samples_first(nn.Linear(4, 2), x) is x


# --- copying --------------------------------------------------------------------------------------------------------


class Holder:
    """An object of the caller's own class, without `clone`; it refers to itself and to an object inside it."""

    def __init__(self, x, inner=None):
        self.x, self.inner, self.itself = x, inner, self


def addresses(tree):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(tree)}


@pytest.mark.parametrize(
    "tree",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).T,
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(6.0).reshape(2, 3)[:, 1:],
        torch.ones(1, 3).expand(4, 3),
        (torch.ones(2), [torch.zeros(2), "name", None], {"x": torch.ones(3)}),
        Pair(torch.ones(2), OrderedDict(x=torch.ones(1))),
        UserDict(x=torch.ones(2)),
        Output(torch.ones(2), (torch.zeros(3),)),
        pack_sequence([torch.ones(3), torch.ones(2)], enforce_sorted=False),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_a_copy_has_the_same_values_and_shares_no_memory(tree):
    own = copied(tree)
    assert type(own) is type(tree)
    pairs = list(zip(tensors(tree), tensors(own), strict=True))
    assert pairs
    for x, y in pairs:
        assert torch.equal(x, y)
        assert x.stride() == y.stride() or not x.is_contiguous()
    assert not addresses(tree) & addresses(own)


def test_a_copy_keeps_strides_and_the_wish_for_gradients():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    own = copied({"x": x, "ids": torch.arange(3)})
    assert own["x"].is_contiguous(memory_format=torch.channels_last)
    assert own["x"].requires_grad
    assert own["x"].is_leaf
    assert not own["ids"].requires_grad
    doubled = x * 2
    with torch.no_grad():
        assert copied(doubled).requires_grad, "also of a tensor with a history"


WRITES = {
    "in place": lambda x: x.add_(1),
    "through .data": lambda x: x.data.add_(1),
    "through a view": lambda x: x.view(-1).mul_(2),
    "an entry": lambda x: x.__setitem__(0, 7.0),
    "out=": lambda x: torch.add(x, 1, out=x),
    "through an array": lambda x: x.numpy().fill(3),
    "through a buffer": lambda x: memoryview(x.numpy()).cast("B").__setitem__(0, 9),
    "through its address": lambda x: ctypes.memset(x.data_ptr(), 0, 8),
    "through its storage": lambda x: x.untyped_storage().fill_(0),
    "other sizes": lambda x: x.resize_(2).fill_(0),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_copy_when_written_is_one_whatever_writes(write):
    x = torch.arange(6.0).reshape(2, 3)
    before, address = x.clone(), x.data_ptr()
    own = copied({"x": x}, when_written=True)["x"]
    assert torch.equal(own, x)
    WRITES[write](own)
    assert torch.equal(x, before)
    assert not torch.equal(own, before)
    del own
    x.add_(1)
    assert x.data_ptr() == address, "memory that others may know stays where it is"


def test_a_copy_when_written_takes_no_memory_before():
    x = torch.ones(2, 3)
    own = copied(x, when_written=True)
    assert torch._C._data_address(own) == torch._C._data_address(x)
    x.add_(1)
    assert torch.equal(own, torch.ones(2, 3)), "nor does the original write into the copy"


@pytest.mark.parametrize(
    "x",
    [
        torch.from_numpy(np.arange(6.0)), torch.arange(6.0).share_memory_(), torch.arange(12.0)[:6],
        torch.arange(6.0).expand(2, 6), torch.eye(3).to_sparse(), nn.Parameter(torch.ones(3)),
        torch.ones(3, dtype=torch.bfloat16), torch.zeros(0),
    ],
    ids=["of numpy", "shared", "a part", "expanded", "sparse", "a parameter", "bfloat16", "empty"],
)  # fmt: skip
def test_a_copy_when_written_of_any_tensor(x):
    """Where torch has no copy on write it is a plain copy; a part of a storage is not copied with all of it."""
    before = x.detach().clone()
    own = copied(x, when_written=True)
    assert type(own) is type(copied(x))
    assert torch.equal(own.to_dense(), before.to_dense())
    with torch.no_grad():
        (own.values() if own.is_sparse else own.contiguous() if own._is_view() else own).fill_(5)
    assert torch.equal(x.to_dense(), before.to_dense())
    assert own.is_sparse or own.untyped_storage().nbytes() <= before.numel() * before.itemsize


def test_sparse_and_nested_tensors_are_copied():
    sparse = torch.eye(3).to_sparse()
    own = copied(sparse)
    own.values().fill_(7)
    assert torch.equal(sparse.to_dense(), torch.eye(3))
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    own = copied(nested)
    own.values().fill_(7)
    assert own.is_nested
    assert torch.equal(nested.values(), torch.ones(6, 3))


def test_arrays_and_containers_are_copied():
    array = np.arange(6.0).reshape(2, 3).T
    tree = {"x": array, "names": ["a", "b"]}
    own = copied(tree)
    own["x"][:] = 0
    own["names"].append("c")
    own.pop("x")
    assert list(tree) == ["x", "names"]
    assert tree["names"] == ["a", "b"]
    np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3).T)


def test_what_is_in_a_batch_twice_is_copied_once():
    x = torch.ones(2)
    own = copied((x, {"x": x}))
    assert own[0] is own[1]["x"]


def test_objects_with_tensors_are_copied_and_others_are_passed_on():
    inner = Holder([np.ones(2)])
    holder = Holder(torch.ones(2), inner)
    own = copied(holder)
    own.x.zero_()
    own.inner.x[0][:] = 0
    assert torch.equal(holder.x, torch.ones(2))
    assert holder.inner is inner
    np.testing.assert_array_equal(inner.x[0], 1)
    for leaf in (Holder("text", ["a"]), nn.Linear(2, 2), torch.float32, object(), Output, len, {1, 2}):
        assert copied(leaf) is leaf


def test_an_object_that_can_clone_itself_is_cloned():
    class Graph:
        def __init__(self, x):
            self.x, self.cache = x, "not copied"

        def clone(self):
            return Graph(self.x.clone())

    graph = Graph(torch.ones(2))
    own = copied([graph])[0]
    own.x.zero_()
    assert torch.equal(graph.x, torch.ones(2))


def test_moving_leaves_an_object_whose_to_works_in_place_as_it_is():
    class Graph:
        def __init__(self, x):
            self.x = x

        def to(self, device):
            self.x = self.x.to(device)
            return self

    graph = Graph(torch.ones(2))
    assert move(graph, META).x.device == META
    assert graph.x.device.type == "cpu"


def test_a_moved_tensor_still_requires_a_gradient():
    with torch.no_grad():
        assert move(torch.ones(2, requires_grad=True), META).requires_grad
