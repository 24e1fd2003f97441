"""Digits, CIFAR-100 and ImageNet folders: contents, determinism, messages about missing files."""

import hashlib
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR100

from cka_probe.distill.data import cifar100, digits, imagenet

# ---------------------------------------------------------------------------------------------------------- digits


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


# ------------------------------------------------------------------------------------------------------- CIFAR-100


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """Write eight and four images as CIFAR-100 files, and give torchvision their checksums."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    generator = np.random.default_rng(0)
    checksums = {}
    for name, count in (("train", 8), ("test", 4)):
        entry = {
            "filenames": [f"{name}_{index}.png" for index in range(count)],
            "fine_labels": [int(label) for label in generator.integers(0, 100, count)],
            "coarse_labels": [0] * count,
            "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names": [f"class {index}" for index in range(100)], "coarse_label_names": ["all"]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    for name in ("train", "test", "meta"):
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": checksums["meta"]})
    return tmp_path


def stored_images(root, name):
    entry = pickle.loads((root / "cifar-100-python" / name).read_bytes())
    images = entry["data"].reshape(-1, 3, 32, 32) / 255.0
    mean = np.array([0.5071, 0.4867, 0.4408]).reshape(3, 1, 1)
    deviation = np.array([0.2675, 0.2565, 0.2761]).reshape(3, 1, 1)
    return (images - mean) / deviation, entry["fine_labels"]


def test_cifar100_is_normalised(cifar_root):
    train, test = cifar100(cifar_root, augment=False)
    for part, name in ((train, "train"), (test, "test")):
        images, labels = stored_images(cifar_root, name)
        assert [label for _, label in part] == labels
        np.testing.assert_allclose(np.stack([image for image, _ in part]), images, atol=1e-5)
    assert train[0][0].dtype == torch.float32
    assert train.classes[7] == "class 7"


def test_cifar100_augmentation_is_a_padded_crop_and_a_flip(cifar_root):
    torch.manual_seed(0)
    train, test = cifar100(cifar_root)
    images, _ = stored_images(cifar_root, "train")
    black = (0 - np.array([0.5071, 0.4867, 0.4408])) / np.array([0.2675, 0.2565, 0.2761])
    padded = np.broadcast_to(black.reshape(3, 1, 1), (3, 40, 40)).copy()
    padded[:, 4:36, 4:36] = images[0]
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    candidates = np.stack(crops + [crop[:, :, ::-1] for crop in crops])
    drawn = set()
    for _ in range(30):
        distance = abs(candidates - train[0][0].numpy()).max(axis=(1, 2, 3))
        assert distance.min() < 1e-5
        drawn.add(int(distance.argmin()))
    assert len(drawn) > 15
    assert {index < 81 for index in drawn} == {True, False}
    assert torch.equal(test[0][0], test[0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seeded_loader_repeats_its_augmentation(cifar_root, workers):
    train, _ = cifar100(cifar_root)

    def batches():
        torch.manual_seed(0)  # without workers the augmentations draw from this generator
        generator = torch.Generator().manual_seed(5)
        return list(DataLoader(train, 4, shuffle=True, num_workers=workers, generator=generator))

    for (images, labels), (same_images, same_labels) in zip(batches(), batches(), strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_cifar100_missing(tmp_path):
    message = r"CIFAR-100 is not in '.*': .*train, .*test, .*meta are missing\. Unpack .* download=True; nothing is"
    with pytest.raises(FileNotFoundError, match=message):
        cifar100(tmp_path)


def test_cifar100_one_file_missing(cifar_root):
    (cifar_root / "cifar-100-python" / "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python.test is missing"):
        cifar100(cifar_root)


@pytest.mark.parametrize("name", ["train", "meta"])
def test_cifar100_damaged(cifar_root, name):
    path = cifar_root / "cifar-100-python" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"is damaged: the checksum of {name} is wrong\. Delete the folder"):
        cifar100(cifar_root)


def test_cifar100_downloads_only_when_asked(tmp_path, monkeypatch):
    asked = []

    def download(dataset):
        asked.append(dataset.root)
        raise RuntimeError("no network")

    monkeypatch.setattr(CIFAR100, "download", download)
    with pytest.raises(FileNotFoundError):
        cifar100(tmp_path)
    assert asked == []
    with pytest.raises(ValueError, match="is damaged") as caught:
        cifar100(tmp_path, download=True)
    assert "no network" in str(caught.value.__cause__)


# -------------------------------------------------------------------------------------------------------- ImageNet


@pytest.fixture
def imagenet_root(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{index}.JPEG")
    return tmp_path


def test_imagenet_folders(imagenet_root):
    train, test = imagenet(imagenet_root)
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == ["n01440764", "n01443537"]
    assert [label for _, label in test] == [0, 0, 1, 1]
    image, _ = train[0]
    assert image.shape == (3, 224, 224)
    assert image.dtype == torch.float32
    torch.manual_seed(0)
    first, second = train[0][0], train[0][0]
    assert not torch.equal(first, second)
    assert torch.equal(test[0][0], test[0][0])
    plain, _ = imagenet(imagenet_root, augment=False)
    assert torch.equal(plain[0][0], plain[0][0])


def test_imagenet_test_images_are_centre_crops(imagenet_root):
    path = imagenet_root / "val" / "n01440764" / "n01440764_0.JPEG"
    grey = np.full((256, 300, 3), 128, dtype=np.uint8)
    grey[:, :38] = 255  # outside of the centre crop, columns 38 to 261
    Image.fromarray(grey).save(path.with_suffix(".png"))
    path.unlink()
    _, test = imagenet(imagenet_root)
    image = next(test[index][0] for index, (name, _) in enumerate(test.samples) if name.endswith(".png"))
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(image.numpy(), np.broadcast_to(expected.reshape(3, 1, 1), (3, 224, 224)), atol=1e-5)


def test_imagenet_missing(tmp_path):
    expected = r"does not exist\. Images are expected at .*train/CLASS/\*\.JPEG and .*val/CLASS/\*\.JPEG; nothing is"
    with pytest.raises(FileNotFoundError, match=rf"train' {expected}"):
        imagenet(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"val' {expected}"):
        imagenet(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="val' has no class folders"):
        imagenet(tmp_path)


def test_imagenet_empty_class(imagenet_root):
    for path in (imagenet_root / "val" / "n01443537").iterdir():
        path.unlink()
    folder = re.escape(str(imagenet_root / "val"))
    with pytest.raises(FileNotFoundError, match=rf"Some class folders in '{folder}' are empty\. .*n01443537"):
        imagenet(imagenet_root)


def test_imagenet_classes_must_agree(imagenet_root):
    (imagenet_root / "val" / "n09999999").mkdir()
    with pytest.raises(ValueError, match="same class folders: 2 and 3 were found, and only one of them has n09999999"):
        imagenet(imagenet_root)
