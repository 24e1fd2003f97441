"""Digits: contents, determinism, messages."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cka_probe.distill.data import digits


def test_digits_are_split_by_class():
    train, test = digits()
    assert len(train) == 1078
    assert len(test) == 719
    image, label = train[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert label.dtype == torch.int64
    assert label.ndim == 0
    whole = np.bincount(load_digits().target)
    parts = [np.bincount(part.tensors[1], minlength=10) for part in (train, test)]
    assert (parts[0] + parts[1] == whole).all()
    assert (abs(parts[1] - 0.4 * whole) <= 0.5).all()


def test_digits_are_the_images_of_scikit_learn():
    train, test = digits(size=8, channels=1)
    images = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1).double()
    labels = torch.cat([train.tensors[1], test.tensors[1]])
    bunch = load_digits()
    # Undo the normalisation: the known minimum and maximum are 0 and 16.
    images = (images - images.min()) / (images.max() - images.min()) * 16
    ours = sorted((label.item(), *image.round().int().tolist()) for label, image in zip(labels, images, strict=True))
    theirs = sorted((label, *row.astype(int)) for label, row in zip(bunch.target, bunch.data, strict=True))
    assert ours == theirs


def test_digits_are_normalised_over_the_training_part():
    train, _ = digits(channels=1)
    images = train.tensors[0].double()
    assert images.mean().abs() < 1e-5
    assert abs(images.std().item() - 1) < 1e-5


def test_channels_repeat_the_grey_image():
    coloured, grey = digits(channels=3)[1].tensors[0], digits(channels=1)[1].tensors[0]
    assert torch.equal(coloured, grey.repeat(1, 3, 1, 1))


def test_digits_resize_bilinearly():
    small = digits(size=8, channels=1)[1].tensors[0]
    large = digits(size=16, channels=1)[1].tensors[0]
    # Pixel 2 i + 1 of the doubled row lies a quarter of the way from i to i + 1.
    row = 0.75 * small[0, 0, :, :-1] + 0.25 * small[0, 0, :, 1:]
    expected = 0.75 * row[:-1] + 0.25 * row[1:]
    found = large[0, 0, 1:-1:2, 1:-1:2]
    correlation = torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1]  # normalisations differ
    assert correlation == pytest.approx(1, abs=1e-5)


def test_digits_depend_on_the_seed_alone():
    first, again, other = digits(), digits(), digits(seed=1)
    for part in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(first[part].tensors, again[part].tensors, strict=True))
    assert not torch.equal(first[1].tensors[0], other[1].tensors[0])
    state = torch.get_rng_state()
    digits()
    assert torch.equal(state, torch.get_rng_state())


def test_few_digits_are_a_subset_with_the_same_test_set():
    whole, test = digits()
    few, few_test = digits(train_per_class=5)
    more, _ = digits(train_per_class=20)
    assert torch.bincount(few.tensors[1]).tolist() == [5] * 10
    assert torch.equal(test.tensors[0], few_test.tensors[0])
    rows = [{image.numpy().tobytes() for image in part.tensors[0]} for part in (few, more, whole)]
    assert rows[0] < rows[1] < rows[2]
    assert not rows[2] & {image.numpy().tobytes() for image in test.tensors[0]}


def test_digits_bad_arguments():
    with pytest.raises(ValueError, match=r"`train_per_class` must be at most 104 .* got 500; leave it out"):
        digits(train_per_class=500)
    with pytest.raises(ValueError, match="`train_per_class` must be at least 1, got 0"):
        digits(train_per_class=0)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        digits(seed=-1)
    with pytest.raises(TypeError, match=r"`size` must be an integer, got 8\.5"):
        digits(size=8.5)
    with pytest.raises(TypeError, match="`channels` must be an integer, got True"):
        digits(channels=True)
