"""Batches: the call of a model, the number of samples, the join of small batches, two loaders."""

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import cka_probe as cp
from cka_probe.capture.batches import (
    attention_mask,
    batch_count,
    batch_size,
    call_model,
    certain_batch_size,
    expected_samples,
)

Pair = namedtuple("Pair", "image target")


class Recording(nn.Module):
    """Stores its arguments."""

    def forward(self, x, y=None, attention_mask=None):
        self.got = {"x": x, "y": y, "attention_mask": attention_mask}
        return x


@pytest.fixture
def net():
    return Recording()


# --- calling the model --------------------------------------------------------------------------------------------


def test_a_tensor_is_passed_as_it_is(net):
    x = torch.ones(2)
    call_model(net, x)
    assert net.got["x"] is x


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: Pair(*pair)])
def test_of_input_and_target_the_input_is_passed(net, kind):
    x, target = torch.ones(2), torch.zeros(2)
    call_model(net, kind((x, target)))
    assert net.got == {"x": x, "y": None, "attention_mask": None}


def test_a_tuple_of_several_inputs_before_the_target(net):
    x, y, target = torch.ones(2), torch.ones(3), torch.zeros(2)
    call_model(net, ((x, y), target))
    assert net.got["x"] is x
    assert net.got["y"] is y


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_mapping_becomes_the_keywords_that_the_forward_takes(net, kind):
    x, mask = torch.ones(2), torch.ones(2, 3)
    call_model(net, kind({"x": x, "attention_mask": mask, "labels": torch.zeros(2), "idx": 3}))
    assert net.got["x"] is x
    assert net.got["attention_mask"] is mask


def test_a_mapping_beside_a_target(net):
    x = torch.ones(2)
    call_model(net, ({"x": x}, torch.zeros(2)))
    assert net.got["x"] is x


def test_labels_are_not_passed_to_a_forward_that_takes_any_keyword():
    class Any(nn.Module):
        def forward(self, **keywords):
            self.got = keywords

    net = Any()
    call_model(net, {"x": 1, "labels": 2, "label": 3})
    assert net.got == {"x": 1}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", r"A batch of type str cannot be passed to Recording\. Pass forward=lambda model, batch"),
        (None, r"A batch of type NoneType cannot be passed to Recording"),
        ((), r"A batch of type tuple cannot be passed to Recording"),
        (["a", "b"], r"A batch of type list cannot be passed to Recording"),
        ({"image": 1, "id": 2}, r"takes none of the keys 'image', 'id' of the batch; its arguments are 'x', 'y', 'att"),
        (([torch.ones(3)] * 5, 0), r"The forward of Recording does not take the 5 inputs of the batch \(too many"),
    ],
)
def test_errors_for_batches_that_the_model_cannot_take(net, batch, message):
    with pytest.raises(TypeError, match=message):
        call_model(net, batch)


def test_only_the_first_of_several_parts_is_used_and_a_note_says_so():
    net, (images,) = small_network(0), image_batches(count=1)
    index = torch.arange(len(images))
    result = cp.compare(net, net, DataLoader(TensorDataset(images, index, index), batch_size=6), progress=False)
    assert result.notes == (
        "model_x (Sequential) was given only the first of the 3 parts of each batch, and not part 3, of shape (6,). To "
        "use more, let the batches be ((first, second), target) or dicts, or pass forward=",
    )
    assert not cp.compare(net, net, DataLoader(TensorDataset(images, index), batch_size=6), progress=False).notes


# --- masks and sizes ----------------------------------------------------------------------------------------------


def test_the_attention_mask_of_a_batch():
    mask = torch.ones(2, 3)
    assert attention_mask({"attention_mask": mask}) is mask
    assert attention_mask(({"attention_mask": mask}, torch.zeros(2))) is mask
    assert attention_mask({"attention_mask": torch.ones(2, 1, 3, 3)}) is None
    assert attention_mask({"attention_mask": None}) is None
    assert attention_mask(torch.ones(2, 3)) is None
    assert attention_mask([]) is None


def test_the_number_of_samples():
    images = torch.zeros(5, 3, 8, 8)
    assert batch_size(images) == 5
    assert batch_size((images, torch.zeros(5))) == 5
    assert batch_size({"name": "x", "scale": torch.tensor(2.0), "image": images}) == 5
    assert batch_size(["a"]) is None


def test_a_list_of_images_is_not_three_samples():
    images = tuple(torch.zeros(3, 8, 8) for _ in range(6))
    boxes = tuple({"boxes": torch.zeros(3, 4)} for _ in range(6))
    assert certain_batch_size((images, boxes)) is None
    assert certain_batch_size((torch.zeros(5, 3), torch.zeros(5))) == 5
    assert certain_batch_size((torch.zeros(5, 3), torch.zeros(4))) is None
    assert certain_batch_size({"x": torch.zeros(5, 3), "scale": torch.tensor(1.0)}) is None
    assert certain_batch_size({"images": list(images), "scale": torch.zeros(3)}) is None
    assert certain_batch_size((torch.zeros(5, 3), ["a"] * 5)) == 5
    assert certain_batch_size("text") is None


class Stream(IterableDataset):
    """A data set without a length: `len` of its DataLoader raises TypeError."""

    def __iter__(self):
        return iter(torch.randn(20, 4))


def test_the_expected_number_of_samples():
    x = torch.zeros(20, 3)
    assert expected_samples(x) == 20
    assert expected_samples({"x": x, "y": torch.zeros(20)}) == 20
    assert expected_samples(DataLoader(TensorDataset(x), batch_size=8)) == 20
    assert expected_samples([x, (x[:5], None)]) == 25
    assert expected_samples(["a", "b"]) == 0
    assert expected_samples(iter([x])) is None
    assert expected_samples(iter([x]), 8) is None
    assert expected_samples(range(3)) is None, "a loader of some other library, before its first batch"
    assert expected_samples(range(3), 8) == 24
    assert expected_samples(DataLoader(Stream(), batch_size=5), 5) is None


def test_the_expected_number_of_batches():
    assert batch_count(torch.zeros(20, 3)) == batch_count({"x": torch.zeros(20)}) == 1
    assert batch_count(DataLoader(torch.zeros(20, 3), batch_size=8)) == 3
    assert batch_count(iter([])) is None
    assert batch_count(DataLoader(Stream(), batch_size=5)) is None


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_a_stream_without_length_can_be_compared(scope):
    net = nn.Linear(4, 3)
    result = cp.compare(net, net, DataLoader(Stream(), batch_size=5), layers="", scope=scope)
    assert result.meta["samples"] == 20


def test_detectors_are_compared_on_lists_of_images():
    """The collate function of torchvision's detection examples returns tuples of images and of targets."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.body(torch.stack(images)).mean((2, 3))

    net = Detector()
    images = torch.randn(10, 3, 6, 6)
    targets = [{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3)} for _ in images]
    data = [(list(images[:6]), targets[:6]), (list(images[6:]), targets[6:])]
    result = cp.compare(net, net, data, forward=lambda model, batch: model(batch[0]), progress=False)
    assert (result.meta["batches"], result.meta["samples"]) == (2, 10)
    expected = cp.compare(net, net, [images[:6], images[6:]], forward=lambda model, x: model(list(x)), progress=False)
    assert_allclose(result.values, expected.values, atol=1e-6)
