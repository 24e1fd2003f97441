"""What may be given as `data`: one batch, batches, two loaders; what is refused before any model runs."""

from functools import partial

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp
from cka_probe.capture.sources import cut, is_one_batch, one_batch

compared = partial(cp.compare, progress=False)


# --- two loaders --------------------------------------------------------------------------------------------------


def test_a_shuffling_loader_cannot_be_paired():
    net, (images,) = small_network(0), image_batches(count=1)
    plain, shuffled = (DataLoader(images, batch_size=6, shuffle=flag) for flag in (False, True))
    with pytest.raises(ValueError, match=r"`data_y` shuffles, so its samples are not in the order of the other\. Turn"):
        cp.compare(net, net, plain, data_y=shuffled, progress=False)
    with pytest.raises(ValueError, match=r"`data` shuffles"):
        cp.compare(net, net, shuffled, data_y=shuffled, progress=False)


def test_loaders_that_shuffle_with_equal_seeds_can_be_paired():
    net, (images,) = small_network(0), image_batches(count=1)
    loaders = [
        DataLoader(images, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    ]
    result = cp.compare(net, small_network(0), loaders[0], data_y=loaders[1], progress=False)
    assert_allclose(result.values.diagonal(), 1.0, atol=1e-6)


def test_a_single_loader_may_shuffle():
    net, (images,) = small_network(0), image_batches(count=1)
    result = cp.compare(net, small_network(0), DataLoader(images, batch_size=6, shuffle=True), progress=False)
    assert_allclose(result.values.diagonal(), 1.0, atol=1e-6)


# --- one batch ----------------------------------------------------------------------------------------------------


def many_rows(count=1300):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(3))


def two_nets():
    torch.manual_seed(1)
    return [nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(2)]


@pytest.mark.parametrize("kind", ["tensor", "array", "dict", "tuple"])
def test_one_large_batch_is_cut_into_minibatches_with_a_note(kind):
    x, y = two_nets()
    rows = many_rows()
    for net in (x, y) if kind == "dict" else ():
        net.forward = lambda input, net=net: nn.Sequential.forward(net, input)
    data = {
        "tensor": rows,
        "array": rows.numpy(),
        "dict": {"input": rows, "labels": torch.arange(1300), "names": ["a"] * 1300},
        "tuple": (rows, torch.arange(1300)),
    }[kind]
    result = compared(x, y, data)
    pieces = rows.tensor_split(3)
    assert [len(piece) for piece in pieces] == [434, 433, 433]
    expected = reference_cka(*([cloned_rows(net, piece) for piece in pieces] for net in (x, y)))
    assert_allclose(result.values, expected, atol=1e-6)
    assert (result.meta["batches"], result.meta["samples"]) == (3, 1300)
    (note,) = result.notes
    assert note == (
        "the data are one batch of 1300 samples; it was cut into 3 minibatches of at most 434. To choose the size, "
        "give batches: data.split(256), or a DataLoader"
    )


def cloned_rows(net, rows):
    return cloned(net, rows, lambda name, _: name != "", run=lambda model, batch: nn.Sequential.forward(model, batch))


def test_the_whole_data_set_is_the_same_cut_or_not_and_needs_no_note():
    x, y = two_nets()
    rows = many_rows()
    result = compared(x, y, rows, scope="dataset")
    assert_allclose(result.values, reference_cka([cloned(x, rows)], [cloned(y, rows)]), atol=1e-6)
    assert not any("cut" in note for note in result.notes)
    features = cp.extract(x, rows, progress=False)
    assert not features.notes
    assert_allclose(features["2"].numpy(), cloned(x, rows)["2"], atol=1e-5)


def test_both_sides_of_a_pair_are_cut_alike():
    x, y = two_nets()
    rows = many_rows()
    result = compared(x, y, rows, data_y=rows.clone())
    assert_allclose(result.values, compared(x, y, rows).values, atol=1e-12)
    whole = compared(x, y, rows, data_y=[rows])
    assert whole.meta["batches"] == 1, "the batches of a list are as the caller chose them"


@pytest.mark.parametrize(
    "batch",
    [
        torch.randn(512, 3),
        [torch.randn(1300, 3)] * 2,
        {"x": torch.randn(1300, 3), "adjacency": torch.eye(1300)},
        {"x": torch.randn(1300, 3), "edge_index": torch.zeros(2, 9000)},
        {"x": torch.randn(1300, 3).to_sparse()},
        {"x": torch.randn(1300, 3), "graph": object()},
        {"x": torch.randn(1300, 3), "names": ["a", "b"]},
        torch.randn(1300, 1300),
    ],
    ids=["small", "a list of batches", "an adjacency", "edges", "sparse", "an object", "names", "square"],
)
def test_what_stays_whole(batch):
    pieces = cut(batch)
    assert len(pieces) == 1 or isinstance(batch, list)
    assert pieces[0] is batch or isinstance(batch, list)


def test_cutting_keeps_the_form_and_the_order():
    names = [str(i) for i in range(10)]
    pieces = cut({"x": torch.arange(10), "y": np.arange(20).reshape(10, 2), "names": names, "scale": 2.0}, rows=4)
    assert [len(piece["x"]) for piece in pieces] == [4, 3, 3]
    assert torch.cat([piece["x"] for piece in pieces]).tolist() == list(range(10))
    assert np.concatenate([piece["y"] for piece in pieces]).ravel().tolist() == list(range(20))
    assert [name for piece in pieces for name in piece["names"]] == names
    assert {piece["scale"] for piece in pieces} == {2.0}


def test_with_a_forward_of_the_caller_one_batch_stays_whole():
    """A network on a graph reads all nodes at once."""
    x, y = two_nets()
    rows = many_rows()
    ring = torch.roll(torch.eye(1300), 1, 0)
    result = compared(x, y, rows, forward=lambda model, batch: model(ring @ batch))
    assert_allclose(result.values, reference_cka([cloned(x, ring @ rows)], [cloned(y, ring @ rows)]), atol=1e-6)


def test_what_is_one_batch():
    class Graph:
        def to(self, device):
            return self

        def clone(self):
            return self

    x = torch.ones(5, 2)
    packed = nn.utils.rnn.pack_sequence([x, x])
    for one in (x, x.numpy(), {"x": x}, packed, Graph(), (x, torch.ones(5)), (x.long(), x.bool())):
        assert is_one_batch(one)
        assert list(one_batch(one)) == [one] or one is x
    for several in ([x, torch.ones(5)], (x, x), (x, torch.ones(6, 2)), (x, None), iter([x]), DataLoader(x)):
        assert not is_one_batch(several)
        assert one_batch(several) is several


# --- what is no data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2)),
            r"`data` is a network \(Sequential\)\. The batches come after the two networks",
        ),
        ("images/", r"`data` is a text, 'images/'\. Give an iterable of batches, such as a DataLoader"),
        (None, r"`data` must be an iterable of batches, such as a DataLoader, got NoneType"),
        (DataLoader, r"`data` is the class DataLoader\. Give an object of it"),
        (lambda: iter([]), r"`data` is a function\. Call it: give the batches that it returns"),
        (torch.tensor(3.0), r"`data` is a single number\. A batch has samples on axis 0"),
    ],
)
def test_what_is_refused_before_a_model_runs(data, message):
    net, runs = small_network(0), []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    with pytest.raises(TypeError, match=message):
        compared(net, small_network(1), data)
    if data is not None:
        with pytest.raises(TypeError, match=message.replace("`data` ", "`data_y` ")):
            compared(net, small_network(1), image_batches(1), data_y=data)
    assert not runs


def test_a_data_set_of_ones_own_class_is_refused():
    class Samples:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.ones(3)

    with pytest.raises(
        TypeError, match=r"is a Samples that cannot be iterated; its items are taken for single samples"
    ):
        one_batch(Samples())


def test_a_table_and_a_data_set_of_hugging_face_are_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"`data` is a DataFrame\. Give its numbers: torch\.tensor\(data\.to_numpy"):
        one_batch(pandas.DataFrame({"a": [1.0]}))
    arrow = type("Dataset", (), {"with_format": None, "__iter__": None, "__module__": "datasets.arrow_dataset"})()
    with pytest.raises(TypeError, match=r'Wrap it: DataLoader\(data\.with_format\("torch"\), batch_size=64\)'):
        one_batch(arrow)


# --- single samples instead of batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, 0.5, torch.tensor(3), np.int64(3)])
@pytest.mark.parametrize("shape", [(8,), (3, 6, 6), (1, 28, 28), (28, 28, 3)])
def test_samples_with_labels_are_not_batches(shape, label):
    net = nn.Sequential(nn.Flatten(0), nn.Linear(8, 4))
    data = [(torch.randn(shape), label) for _ in range(10)]
    for items in (data, iter(data), [{"image": image, "label": label} for image, label in data]):
        with pytest.raises(
            TypeError, match=r"Item 0 of `data` looks like one sample, not like a batch: an input of sha"
        ):
            cp.extract(net, items, progress=False)


def test_a_matrix_beside_one_label_may_be_a_batch():
    x, y = two_nets()
    batches = [(rows, number) for number, rows in enumerate(many_rows(60).split(20))]
    result = compared(x, y, batches)
    expected = reference_cka(*([cloned(net, rows) for rows, _ in batches] for net in (x, y)))
    assert_allclose(result.values, expected, atol=1e-6)
    (note,) = result.notes
    assert note.startswith(
        "item 0 of the data is an input of shape (20, 8) beside a single number as its label; it was "
    )


@pytest.mark.parametrize(
    "batch", [(torch.ones(4, 3, 6, 6), 0), (torch.ones(1, 8), 0), (torch.ones(4, 8), None), (torch.ones(4, 8), "name")]
)
def test_batches_beside_something_else_are_batches(batch):
    x, _ = two_nets()
    net = nn.Sequential(nn.Conv2d(3, 2, 3)) if batch[0].ndim == 4 else x
    assert not cp.extract(net, [batch], progress=False).notes


@pytest.mark.parametrize(
    ("net", "sample"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(8)),
        (nn.Sequential(nn.Conv2d(5, 5, 3), nn.ReLU()), torch.randn(5, 6, 6)),
        (nn.Sequential(nn.Conv1d(5, 5, 3), nn.ReLU()), torch.randn(5, 6)),
    ],
    ids=["vectors", "images", "series"],
)
def test_a_layer_that_was_given_one_sample_proves_that_there_is_no_axis_of_samples(net, sample):
    data = [torch.randn_like(sample) for _ in range(6)]
    with pytest.raises(
        cp.CaptureError, match=r"was given a single sample without an axis of samples.*DataLoader\(data"
    ):
        compared(net, net, data, layers=[type(net[0])])
    result = compared(net, net, DataLoader(data, batch_size=6))
    assert result.meta["samples"] == 6


def test_images_one_by_one_that_were_joined_by_their_channels():
    net = small_network(0)
    with pytest.raises(RuntimeError, match="channels") as caught:
        compared(net, net, list(image_batches(1)[0]))
    assert (
        "It was joined from 2 items of `data`, because each seemed to hold fewer than 4 samples"
        in caught.value.__notes__[0]
    )
    assert "DataLoader(data, batch_size=64)" in caught.value.__notes__[0]
