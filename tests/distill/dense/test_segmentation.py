"""Segmenters: two steps of distillation on Cityscapes-style folders, mean IoU, label maps, and wrong input."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_detectors import SIZE, weights
from torch import nn
from torchvision.transforms import v2

from cka_probe.distill.baselines import CWDLoss
from cka_probe.distill.data.image_folders import IMAGENET_DEVIATION, IMAGENET_MEAN
from cka_probe.distill.dense import PatchCKALoss, SegmentationCKALoss
from cka_probe.distill.dense.data import CITYSCAPES_TRAIN_IDS, CocoBoxes, LabelMaps
from cka_probe.distill.dense.networks import SmallResNet, segmenter
from cka_probe.distill.dense.segmentation import distill_segmenter, mean_iou


@pytest.fixture(scope="module")
def train(scenes):
    return LabelMaps(scenes.root, "train")


@pytest.fixture(scope="module")
def val(scenes):
    return LabelMaps(scenes.root, "val")


def network(architecture="lraspp", width=8, seed=0, classes=11):
    torch.manual_seed(seed)
    return segmenter(architecture, SmallResNet(width), classes)


@pytest.mark.parametrize("architecture", ["lraspp", "deeplabv3"])
def test_two_steps_of_distillation(architecture, train, val, tmp_path):
    teacher, student = network("deeplabv3", 16, seed=1), network(architecture)
    before = weights(teacher)
    result = distill_segmenter(
        teacher,
        student,
        train,
        val,
        SegmentationCKALoss(),
        steps=2,
        batch_size=2,
        output_dir=tmp_path,
        log_every=1,
        progress=False,
    )
    columns = ["step", "loss", "cross_entropy", "intra", "inter", "lr", "seconds"]
    assert list(result.history.columns) == [*columns, *(f"test_{name}" for name in result.scores)]
    assert np.isfinite(result.history[columns].to_numpy()).all()
    assert torch.equal(weights(teacher), before)
    files = {path.name for path in tmp_path.iterdir()}
    expected = {"best.safetensors", "last.safetensors", "history.csv", "scores.csv", "settings.json"}
    assert files == expected | {"checkpoint.pt", "checkpoint.previous.pt"}
    assert 0 <= result.scores["mIoU"] <= 1
    assert len(result.scores) == 12


@pytest.mark.parametrize("loss", [PatchCKALoss(relation="sample"), CWDLoss()], ids=lambda loss: type(loss).__name__)
def test_losses_of_features(loss, train):
    result = distill_segmenter(
        network(width=16, seed=1),
        network(),
        train,
        loss=loss,
        features="backbone",
        steps=1,
        batch_size=2,
        progress=False,
    )
    assert np.isfinite(result.history.to_numpy()).all()


def test_training_alone_and_the_same_seed(train):
    def run():
        student = network()
        result = distill_segmenter(None, student, train, steps=2, batch_size=2, progress=False)
        assert list(result.history.columns) == ["step", "loss", "cross_entropy", "lr", "seconds"]
        return weights(student)

    assert torch.equal(run(), run())


def test_mixed_precision_and_a_batch_of_one(train):
    losses = {}
    for name in ("no", "bf16"):
        result = distill_segmenter(
            network("deeplabv3", 16, seed=1),
            network(),
            train,
            loss=SegmentationCKALoss(),
            steps=2,
            batch_size=1,
            mixed_precision=name,
            progress=False,
        )
        losses[name] = result.history["loss"].to_numpy()
    np.testing.assert_allclose(losses["bf16"], losses["no"], rtol=0.05)


def test_mean_iou_equals_counting():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.stack([x[:, 0] == number for number in range(4)], 1).float()

    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(0, 3, (5, 8, 8), generator=generator)
    labels = torch.randint(0, 3, (5, 8, 8), generator=generator)
    labels[0, :2] = 255
    data = torch.utils.data.TensorDataset(answers[:, None].float().expand(-1, 3, -1, -1), labels)
    found = mean_iou(Fixed(), data, batch_size=2, progress=False)
    known = labels != 255
    expected = []
    for number in range(3):
        ours, theirs = (answers == number) & known, labels == number
        expected.append(int((ours & theirs).sum()) / int((ours | theirs).sum()))
        assert found[f"IoU {number}"] == pytest.approx(expected[-1])
    assert np.isnan(found["IoU 3"])  # class 3 neither occurs nor is predicted
    assert found["mIoU"] == pytest.approx(np.mean(expected))


def test_labels_are_mapped_cropped_and_flipped(tmp_path):
    assert len(CITYSCAPES_TRAIN_IDS) == 19
    for kind, name in (
        ("leftImg8bit", "a_000000_000000_leftImg8bit.png"),
        ("gtFine", "a_000000_000000_gtFine_labelIds.png"),
    ):
        folder = tmp_path / kind / "train" / "a"
        folder.mkdir(parents=True)
        pixels = np.tile(np.array([7, 0, 26, 33], np.uint8), (6, 1))
        Image.fromarray(pixels if kind == "gtFine" else np.repeat(pixels[..., None], 3, 2)).save(folder / name)
    image, labels = LabelMaps(tmp_path, "train", labels=CITYSCAPES_TRAIN_IDS)[0]
    assert labels[0].tolist() == [0, 255, 13, 18]
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    torch.testing.assert_close(image[0, 0, 1], torch.tensor((0 - 0.485) / 0.229))
    _, labels = LabelMaps(tmp_path, "train", flip=1.0)[0]
    assert labels[0].tolist() == [33, 26, 0, 7]
    image, labels = LabelMaps(tmp_path, "train", crop=(8, 8))[0]  # larger than the picture: the padding is ignored
    assert image.shape == (3, 8, 8)
    assert int((labels == 255).sum()) == 8 * 8 - 6 * 4


def test_pictures_are_in_the_order_of_their_names(scenes, val):
    boxes = CocoBoxes(scenes.val_images, scenes.val_annotations)
    assert len(boxes) == len(val)
    for index in range(len(val)):
        image, labels = val[index]
        expected = v2.functional.normalize(boxes[index][0], IMAGENET_MEAN, IMAGENET_DEVIATION)
        torch.testing.assert_close(image, expected)
        assert set(labels.unique().tolist()) - {0} == set(boxes[index][1]["labels"].tolist())


def test_a_picture_without_any_known_pixel(train):
    class Ignored(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return train[index][0], torch.full((SIZE, SIZE), 255)

    result = distill_segmenter(None, network(), Ignored(), steps=1, batch_size=1, progress=False)
    assert result.history["cross_entropy"][0] == 0.0


def test_bad_input(train, tmp_path):
    loss, options = SegmentationCKALoss(), {"steps": 1, "batch_size": 2, "progress": False}
    with pytest.raises(ValueError, match="A teacher needs a `loss`"):
        distill_segmenter(network(seed=1), network(), train, **options)
    with pytest.raises(ValueError, match="The student scores 5 classes and the teacher 11"):
        distill_segmenter(network(seed=1), network(classes=5), Small(), loss=loss, **options)
    with pytest.raises(ValueError, match="`train` has the label 10, but the student scores 5 classes"):
        distill_segmenter(None, network(classes=5), Small(10), **options)
    with pytest.raises(ValueError, match="name its layer with `features` too"):
        distill_segmenter(network(seed=1), network(), train, loss=loss, teacher_features="backbone", **options)
    with pytest.raises(FileNotFoundError, match="Cityscapes has leftImg8bit and gtFine side by side"):
        LabelMaps(tmp_path, "train")
    with pytest.raises(ValueError, match="`flip` must be a probability"):
        LabelMaps(tmp_path, "train", flip=-1)
    with pytest.raises(ValueError, match="There is no 'lraspp' over 'resnet50'"):
        segmenter("lraspp", "resnet50", 11)
    with pytest.raises(ValueError, match="`classes` must be at least 2"):
        segmenter("lraspp", SmallResNet(8), 1)
    with pytest.raises(ValueError, match="The data is empty"):
        mean_iou(
            network(), torch.utils.data.TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0, 8, 8)), progress=False
        )


class Small(torch.utils.data.Dataset):
    def __init__(self, label=4):
        self.label = label

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.rand(3, SIZE, SIZE), torch.full((SIZE, SIZE), self.label)
