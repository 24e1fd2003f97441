"""Fashion-MNIST: what is read, the cache of unpacked files, messages. The real files where Debian's package is."""

import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cka_probe.distill.data import fashion, fashion_mnist

COUNTS = {"train": 60, "t10k": 20}


def idx(array):
    """An array in the format of MNIST's files: a magic number, the shape, the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def content():
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in COUNTS.items():
        arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = random.permutation(np.arange(count) % 10)
    return arrays


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Sixty and twenty images as Debian's .gz files, with their sizes and checksums, and an empty cache."""
    packed = tmp_path / "debian"
    packed.mkdir()
    files = {name: idx(array) for name, array in content().items()}
    for name, raw in files.items():
        (packed / f"{name}.gz").write_bytes(gzip.compress(raw))
    table = {name: (len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in files.items()}
    monkeypatch.setattr(fashion, "FILES", table)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", packed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return packed


def unpacked(root):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in content().items():
        (raw / name).write_bytes(idx(array))
    return raw


def test_images_and_labels_are_those_of_the_files(small):
    train, test = fashion_mnist(channels=1)
    for part, name in ((train, "train"), (test, "t10k")):
        images, labels = content()[f"{name}-images-idx3-ubyte"], content()[f"{name}-labels-idx1-ubyte"]
        expected = sorted((label, *image.ravel()) for image, label in zip(images, labels, strict=True))
        pairs = [(image.double() * 0.3530 + 0.2860, label) for image, label in part]
        found = sorted((int(label), *(255 * image).round().int().flatten().tolist()) for image, label in pairs)
        assert found == expected
    assert train[0][0].dtype == torch.float32
    assert train[0][1].dtype == torch.int64
    assert train.classes[:2] == ["T-shirt/top", "Trouser"]
    assert [int(label) for _, label in test] == content()["t10k-labels-idx1-ubyte"].tolist()


def test_size_and_channels(small):
    image = fashion_mnist(size=32)[0][0][0]
    assert image.shape == (3, 32, 32)
    assert torch.equal(image[0], image[2])
    batch = next(iter(DataLoader(fashion_mnist(augment=True)[0], 8, num_workers=1)))
    assert batch[0].shape == (8, 3, 28, 28)


def test_smaller_training_sets_are_subsets_and_never_hold_validation_images(small):
    def rows(data):
        return {image.numpy().tobytes() for image, _ in data}

    few, test = fashion_mnist(train_per_class=2)
    more, validation = fashion_mnist(train_per_class=3, validation_per_class=2)
    whole, all_but = fashion_mnist()[0], fashion_mnist(validation_per_class=2)[0]
    assert torch.bincount(few.labels).tolist() == [2] * 10
    assert torch.bincount(validation.labels).tolist() == [2] * 10
    assert rows(few) < rows(more) < rows(all_but) < rows(whole)
    assert rows(all_but) | rows(validation) == rows(whole)
    assert not rows(validation) & rows(all_but)
    assert len(test) == 20
    assert rows(fashion_mnist(train_per_class=2, seed=1)[0]) != rows(few)


def test_augmentation_is_a_crop_of_the_padded_image_and_a_flip(small):
    torch.manual_seed(0)
    train = fashion_mnist(augment=True, channels=1)[0]
    plain = fashion_mnist(channels=1)[0][0][0]
    black = (0 - 0.2860) / 0.3530
    padded = torch.full((1, 32, 32), black)
    padded[:, 2:30, 2:30] = plain
    crops = [padded[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
    candidates = torch.stack(crops + [crop.flip(2) for crop in crops])
    drawn = set()
    for _ in range(40):
        distance = (candidates - train[0][0]).abs().amax((1, 2, 3))
        assert distance.min() < 1e-6
        drawn.add(int(distance.argmin()))
    assert len(drawn) > 15
    test = fashion_mnist(augment=True)[1]
    assert torch.equal(test[0][0], test[0][0])


def test_files_are_unpacked_once_and_the_systems_stay_as_they_are(small, tmp_path):
    before = {path: path.read_bytes() for path in small.iterdir()}
    fashion_mnist()
    cached = sorted((tmp_path / "cache").rglob("*-ubyte"))
    assert len(cached) == 4
    times = [path.stat().st_mtime_ns for path in cached]
    fashion_mnist()
    assert [path.stat().st_mtime_ns for path in cached] == times
    assert {path: path.read_bytes() for path in small.iterdir()} == before
    cached[0].write_bytes(b"half")  # as after a full disk
    fashion_mnist()
    assert cached[0].stat().st_size > 4


def test_two_processes_may_unpack_at_once(small, tmp_path):
    code = (
        "from pathlib import Path; from cka_probe.distill.data import fashion; "
        f"fashion.FILES, fashion.DEBIAN_FOLDER = {fashion.FILES!r}, Path({str(small)!r}); "
        "print(len(fashion.fashion_mnist()[0]))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    assert [worker.communicate()[0].split() for worker in workers] == [[b"60"], [b"60"]]
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert len(fashion_mnist()[0]) == 60


def test_a_root_may_hold_unpacked_files_or_gz_files(small, tmp_path):
    expected = fashion_mnist()[0].images
    raw = unpacked(tmp_path / "mine")
    assert torch.equal(fashion_mnist(tmp_path / "mine")[0].images, expected)
    assert torch.equal(fashion_mnist(str(small))[0].images, expected)
    for path in raw.iterdir():  # torchvision downloads .gz files into the same folder
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert torch.equal(fashion_mnist(tmp_path / "mine")[0].images, expected)


def test_missing_files(small, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"is not in '.*nowhere': train-images.* are missing, unpacked in .*raw"
    ):
        fashion_mnist(tmp_path / "nowhere")
    raw = unpacked(tmp_path / "mine")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r": t10k-labels-idx1-ubyte is missing"):
        fashion_mnist(tmp_path / "mine")
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*pass root=.*nothing is"):
        fashion_mnist()


def test_damaged_files(small, tmp_path):
    raw = unpacked(tmp_path / "mine")
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte' is damaged: it has 47,046 bytes instead of 47,056"):
        fashion_mnist(tmp_path / "mine")
    packed = small / "train-labels-idx1-ubyte.gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz' is damaged \(.*Install or download it again"):
        fashion_mnist()
    labels = bytearray(gzip.decompress(whole))
    labels[-1] ^= 1
    packed.write_bytes(gzip.compress(bytes(labels)))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        fashion_mnist()


def test_bad_arguments(small):
    with pytest.raises(ValueError, match=r"must be at most 6 together \(the images of a class\), got 5 and 2"):
        fashion_mnist(train_per_class=5, validation_per_class=2)
    with pytest.raises(ValueError, match="got at least 1 and 6"):
        fashion_mnist(validation_per_class=6)
    with pytest.raises(ValueError, match="`train_per_class` must be at least 1, got 0"):
        fashion_mnist(train_per_class=0)
    with pytest.raises(TypeError, match="`augment` must be True or False, got 'yes'"):
        fashion_mnist(augment="yes")
    with pytest.raises(TypeError, match=r"`size` must be an integer, got 28\.0"):
        fashion_mnist(size=28.0)


@pytest.mark.skipif(not fashion.DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_files_have_the_known_mean_and_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train, test = fashion_mnist()
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.bincount(train.labels).tolist() == [6_000] * 10
    assert torch.bincount(test.labels).tolist() == [1_000] * 10
    deviation, mean = torch.std_mean(train.images.double() / 255)
    assert (round(float(mean), 4), round(float(deviation), 4)) == (0.2860, 0.3530)
