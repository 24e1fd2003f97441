"""Folders of images: contents, augmentation, messages about missing folders."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from cka_probe.distill.data import image_folder, imagenet, tiny_imagenet


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


def write_image(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def own(tmp_path):
    """A person's own images: three classes, of many sizes, formats and modes."""
    for name, colour in COLOURS.items():
        write_image(tmp_path / "train" / name / "a.jpg", colour)
        write_image(tmp_path / "train" / name / "b.png", colour, (12, 90))
        write_image(tmp_path / "test" / name / "c.bmp", colour, (64, 64))
    Image.new("L", (20, 20), 128).save(tmp_path / "train" / "red" / "grey.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 10)).save(tmp_path / "test" / "red" / "transparent.png")
    return tmp_path


def unnormalised(image, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)):
    return image * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]


@pytest.mark.parametrize(("size", "augment"), [(32, False), (32, True), (100, False), (100, True)])
def test_own_images_of_any_size_and_mode(own, size, augment):
    train, test = image_folder(own, size=size, augment=augment)
    assert (len(train), len(test)) == (7, 4)
    assert train.classes == test.classes == ["blue", "green", "red"]
    for image, label in test:
        assert image.shape == (3, size, size)
        seen = unnormalised(image).mean((1, 2))
        assert int(seen.argmax()) == 2 - label
        assert float(seen[2 - label]) == pytest.approx(1, abs=0.03)
    assert {tuple(image.shape) for image, _ in train} == {(3, size, size)}


@pytest.mark.parametrize("size", [32, 100])
def test_own_training_images_change_only_if_asked(own, size):
    gradient = np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (120, 1, 3))
    Image.fromarray(gradient).save(own / "train" / "blue" / "a.png")
    for augment in (True, False):
        torch.manual_seed(0)
        train, _ = image_folder(own, size=size, augment=augment)
        first = next(index for index, (path, _) in enumerate(train.samples) if path.endswith("blue/a.png"))
        assert torch.equal(train[first][0], train[first][0]) is not augment


def test_own_mean_and_deviation(own):
    test = image_folder(own, size=32, mean=(0, 0, 0), deviation=(1, 1, 1))[1]
    assert float(test[0][0].min()) >= 0
    assert float(test[0][0][2].mean()) == pytest.approx(1, abs=0.01)


def test_folders_of_test_images_have_usual_names(own):
    (own / "test").rename(own / "val")
    assert len(image_folder(own)[1]) == 4
    (own / "val").rename(own / "held out")
    with pytest.raises(FileNotFoundError, match=r"test' does not exist\. Images are expected at .*test/CLASS/\*\.jpg"):
        image_folder(own)
    assert len(image_folder(own, test="held out")[1]) == 4


def test_own_folders_that_do_not_fit(own):
    (own / "train" / "red").rename(own / "train" / "crimson")
    with pytest.raises(ValueError, match="only one of them has crimson, red"):
        image_folder(own)
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        image_folder(own, size=0)
    with pytest.raises(TypeError, match="`augment` must be True or False"):
        image_folder(own, augment=1)


@pytest.fixture
def tiny(tmp_path):
    """Three classes in the layout of tiny-imagenet-200."""
    root = tmp_path / "tiny-imagenet-200"
    names = {"n01": "blue", "n02": "green", "n03": "red"}
    lines = []
    for number, (name, colour) in enumerate(names.items()):
        for index in range(2):
            write_image(root / "train" / name / "images" / f"{name}_{index}.JPEG", COLOURS[colour], (64, 64))
            file = f"val_{2 - number + 3 * index}.JPEG"
            write_image(root / "val" / "images" / file, COLOURS[colour], (64, 64))
            lines.append(f"{file}\t{name}\t0\t0\t44\t62")
        (root / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t10\t10\n")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    return root


def test_tiny_imagenet_takes_validation_labels_from_the_text_file(tiny):
    train, test = tiny_imagenet(tiny, augment=False)
    assert (len(train), len(test)) == (6, 6)
    assert train.classes == test.classes == ["n01", "n02", "n03"]
    for part in (train, test):
        for image, label in part:
            assert image.shape == (3, 64, 64)
            seen = unnormalised(image, (0.480, 0.448, 0.398), (0.277, 0.269, 0.282)).mean((1, 2))
            assert int(seen.argmax()) == 2 - label
    assert [len(part) for part in tiny_imagenet(tiny.parent)] == [6, 6]
    torch.manual_seed(0)
    changed, plain = tiny_imagenet(tiny)
    assert not torch.equal(changed[0][0], changed[0][0])
    assert torch.equal(plain[0][0], plain[0][0])


def test_tiny_imagenet_whose_validation_images_were_sorted_into_folders(tiny):
    for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines():
        file, name = line.split("\t")[:2]
        (tiny / "val" / name).mkdir(exist_ok=True)
        (tiny / "val" / "images" / file).rename(tiny / "val" / name / file)
    (tiny / "val" / "images").rmdir()
    (tiny / "val" / "val_annotations.txt").unlink()
    test = tiny_imagenet(tiny)[1]
    assert [label for _, label in test] == [0, 0, 1, 1, 2, 2]


def test_tiny_imagenet_with_missing_or_wrong_files(tiny, tmp_path):
    labels = tiny / "val" / "val_annotations.txt"
    whole = labels.read_text()
    labels.write_text(whole.replace("n02", "n99"))
    with pytest.raises(
        ValueError, match=r"val_annotations\.txt', line 3: expected .* 3 classes .* got 'val_1\.JPEG.*n99"
    ):
        tiny_imagenet(tiny)
    labels.write_text(whole)
    (tiny / "val" / "images" / "val_4.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images .* are not in '.*images': val_4\.JPEG"):
        tiny_imagenet(tiny)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"val_annotations\.txt' is missing.*nothing is downloaded"):
        tiny_imagenet(tiny)
    with pytest.raises(FileNotFoundError, match="Tiny ImageNet is not complete"):
        tiny_imagenet(tmp_path / "nowhere")
