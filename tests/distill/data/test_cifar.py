"""CIFAR: contents, augmentation, messages about missing and damaged files."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100

from cka_probe.distill.data import cifar10, cifar100


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


@pytest.fixture
def cifar10_root(tmp_path, monkeypatch):
    """Write five training batches of four images and one test batch as CIFAR-10 files."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    sums = {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels = [int(label) for label in generator.integers(0, 10, 4)]
        pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {index}" for index in range(10)]}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    names = [f"data_batch_{number}" for number in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return tmp_path


def test_cifar10_is_read_and_normalised(cifar10_root):
    train, test = cifar10(cifar10_root, augment=False)
    assert (len(train), len(test)) == (20, 4)
    assert train.classes[3] == "class 3"
    entry = pickle.loads((cifar10_root / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    deviation = np.array([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    expected = (entry["data"].reshape(-1, 3, 32, 32) / 255.0 - mean) / deviation
    for index in range(4):
        image, label = train[4 + index]
        assert label == entry["labels"][index]
        np.testing.assert_allclose(image, expected[index], atol=1e-5)


def test_cifar10_missing_and_damaged(cifar10_root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 is not in .*Unpack cifar-10-python\.tar\.gz there"):
        cifar10(tmp_path / "nowhere")
    path = cifar10_root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"CIFAR-10 in .* is damaged: the checksum of data_batch_3 is wrong"):
        cifar10(cifar10_root)
