"""Folders of images: contents, augmentation, messages about missing folders."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from cka_probe.distill.data import imagenet


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
