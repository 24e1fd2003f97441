"""Kinds of batches: several inputs, numpy arrays, packed sequences; what the errors say."""

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.capture.batches import call_model

# --- several inputs -------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(5, 4)

    def forward(self, sample, t, scale=1.0):
        return self.layer(sample + t[:, None] * scale)


def test_a_forward_that_needs_more_inputs_says_how_to_give_them():
    batches = [(torch.randn(9, 5), torch.rand(9)) for _ in range(2)]
    for data, why in (
        (batches, ", because of the 2 parts of a batch only the first is the input"),
        ([batches[0][0]], ""),
    ):
        with pytest.raises(TypeError) as caught:
            cp.compare(TwoInputs(), TwoInputs(1), data, progress=False)
        assert str(caught.value).startswith(
            f"The forward of TwoInputs needs sample, t, but is given only one input{why}"
        )
        assert "Let each batch be ((sample, t), target), or a dict with these names, or pass forward=" in str(
            caught.value
        )
    with pytest.raises(
        TypeError, match=r"also needs t, which the batch, a dict with the keys 'sample', 'time', does not"
    ):
        cp.compare(TwoInputs(), TwoInputs(1), [{"sample": x, "time": t} for x, t in batches], progress=False)


@pytest.mark.parametrize(
    "form",
    [
        lambda x, t: ((x, t), torch.zeros(9)),
        lambda x, t: ((x, t),),
        lambda x, t: {"sample": x, "t": t},
        lambda x, t: ({"t": t, "sample": x}, torch.zeros(9)),
    ],
    ids=["inputs and target", "inputs", "dict", "dict and target"],
)
def test_the_forms_that_the_message_names_run(form):
    batches = [(torch.randn(9, 5), torch.rand(9)) for _ in range(2)]
    nets = TwoInputs(0), TwoInputs(1)
    result = cp.compare(*nets, [form(*batch) for batch in batches], progress=False)
    features = [[cloned(net, b, run=lambda model, batch: model(*batch)) for b in batches] for net in nets]
    assert_allclose(result.values, reference_cka(*features), atol=1e-6)
    assert not result.notes


def test_a_type_error_of_the_network_stays_as_it_is_and_names_the_batch():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x):
            return len(3) + self.layer(x)

    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)") as caught:
        cp.compare(Broken(), Broken(), [torch.randn(9, 5)], progress=False)
    assert caught.value.__notes__ == ["This was model_x (Broken) on batch 0, of shape (9, 5)."]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_errors_of_torch_on_the_dtype_name_the_model_and_the_batch(dtype):
    net = nn.Linear(5, 4)
    with pytest.raises(RuntimeError, match="dtype") as caught:
        cp.compare(net, net, [torch.randn(9, 5), torch.randn(7, 5).to(dtype)], layers="", progress=False)
    assert caught.value.__notes__ == ["This was model_x (Linear) on batch 1, of shape (7, 5)."]


class Sized(nn.Module):
    def forward(self, x, sizes):
        return sizes


def test_python_numbers_and_graphs_are_named():
    net = nn.Linear(2, 2)
    for numbers in ([[0.1, 0.2], [0.3, 0.4]], [0.1, 0.2]):
        with pytest.raises(TypeError, match=r"It holds Python numbers\. Make it a tensor: torch\.tensor\(batch\)"):
            call_model(net, numbers)
    lists = {"input": [[0.1, 0.2], [0.3, 0.4]], "labels": [0, 1]}
    with pytest.raises(
        TypeError, match=r"The batch holds lists of Python numbers: 'input'\. Make tensors of them: torch"
    ):
        call_model(net, lists)
    assert call_model(Sized(), {"x": torch.ones(3), "sizes": [1, 2]}) == [1, 2], "a list beside a tensor is an argument"
    with pytest.raises(TypeError, match=r"Its first part, which is the input, is of type int\. Pass forward=lambda"):
        call_model(net, (0, torch.ones(3, 2)))
    graph = type("Graph", (), {"x": 1, "edge_index": 2})()
    with pytest.raises(
        TypeError, match=r"A graph needs forward=lambda model, batch: model\(batch\.x, batch\.edge_index"
    ):
        call_model(net, graph)


# --- numpy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f4"])
@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x, np.zeros(len(x))),
        lambda x: {"x": x, "labels": np.zeros(len(x)), "names": np.array(["a"] * len(x))},
        lambda x: ({"x": x}, None),
        lambda x: x[::-1][::-1],
    ],
    ids=["array", "tuple", "dict", "dict and target", "reversed"],
)
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_batches_of_arrays(form, dtype, scope):
    class Net(nn.Module):
        def __init__(self, seed, dtype):
            super().__init__()
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(5, 6, dtype=dtype), nn.Linear(6, 4, dtype=dtype)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x.sub_(0))))

    nets = Net(0, torch.float32), Net(1, torch.float64)
    arrays = [np.random.default_rng(i).normal(size=(size, 5)).astype(dtype) for i, size in enumerate((9, 9, 2))]
    for array in arrays:
        array.flags.writeable = False
    result = cp.compare(*nets, [form(array) for array in arrays], scope=scope, progress=False)
    joined = [arrays[0], np.concatenate(arrays[1:])] if scope == "minibatch" else [np.concatenate(arrays)]
    inputs = [[torch.tensor(array.astype("f8")).to(net.first.weight.dtype) for array in joined] for net in nets]
    expected = reference_cka(*([cloned(net, x) for x in own] for net, own in zip(nets, inputs, strict=True)))
    assert_allclose(result.values, expected, atol=1e-6)
    assert result.meta["samples"] == 20
    assert not [note for note in result.notes if "route" not in note]


def test_masked_entries_are_refused():
    net = nn.Sequential(nn.Linear(5, 4))
    values = np.ones((9, 5))
    masked = np.ma.masked_array(values, mask=np.eye(9, 5, dtype=bool))
    with pytest.raises(TypeError, match=r"An array of the batch has masked entries\. Fill them first: array\.filled"):
        cp.compare(net, net, [masked], progress=False)
    assert cp.extract(net, [np.ma.masked_array(values)], progress=False)["0"].shape == (9, 4)


def test_pictures_are_named():
    image = pytest.importorskip("PIL.Image").new("RGB", (6, 6))
    for batch in (image, (image, 3)):
        with pytest.raises(
            TypeError, match=r"It holds a picture\. Make tensors of pictures, and batches of those: ToT"
        ):
            call_model(nn.Linear(2, 2), batch)


def test_signatures_of_arrays_tell_the_samples_apart():
    net = nn.Sequential(nn.Linear(5, 4))
    first, second = (np.random.default_rng(i).normal(size=(9, 5)).astype("f4") for i in (0, 1))
    one, other, same = (cp.signature(net, [x], progress=False) for x in (first, second, torch.from_numpy(first)))
    assert one.order == same.order != other.order


# --- packed sequences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_packed_sequence_is_passed_whole(batch_first):
    class Reader(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.rnn, self.head = nn.GRU(5, 6, batch_first=batch_first), nn.Linear(6, 3)

        def forward(self, packed):
            packed.data.mul_(2)
            _, state = self.rnn(packed)
            return self.head(state[-1])

    lengths = [[3, 5, 1, 4, 2], [2, 2, 6, 1, 3, 4]]
    sequences = [[torch.randn(n, 5) for n in batch] for batch in lengths]
    batches = [nn.utils.rnn.pack_sequence(batch, enforce_sorted=False) for batch in sequences]
    nets = Reader(0), Reader(1)
    for form in (lambda packed: packed, lambda packed: (packed, torch.zeros(len(packed.sorted_indices)))):
        result = cp.compare(*nets, [form(packed) for packed in batches], progress=False)
        assert result.meta["samples"] == 11
        expected = []
        for net in nets:
            side = []
            for batch in sequences:
                with torch.no_grad():  # each sequence on its own, without padding
                    found = [net.rnn(2 * x[None] if batch_first else 2 * x[:, None]) for x in batch]
                    means = [outputs.reshape(len(x), 6).mean(0) for (outputs, _), x in zip(found, batch, strict=True)]
                    heads = [net.head(state.reshape(6)) for _, state in found]
                side.append({"rnn": torch.stack(means).double().numpy(), "head": torch.stack(heads).double().numpy()})
            expected.append(side)
        assert_allclose(result.values, reference_cka(*expected), atol=1e-5)
