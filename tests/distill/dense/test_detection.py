"""Detectors: two steps of distillation on scenes in COCO's format, average precision, and wrong input."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_detectors import SIZE, network, weights, write_coco
from torch import nn

from cka_probe.distill.dense import PatchCKALoss
from cka_probe.distill.dense.data import CocoBoxes, collate_lists
from cka_probe.distill.dense.detection import PAPER_ROWS, average_precision, detector, distill_detector
from cka_probe.distill.dense.networks import DETECTORS
from cka_probe.distill.losses.contract import DistillationLoss


@pytest.fixture(scope="module")
def train(scenes):
    return CocoBoxes(scenes.train_images, scenes.train_annotations)


@pytest.fixture(scope="module")
def val(scenes):
    return CocoBoxes(scenes.val_images, scenes.val_annotations)


def test_the_papers_rows_can_be_built():
    beside = {name: (row.student_ap, row.distilled_ap, row.mimic_ap) for name, row in PAPER_ROWS.items()}
    assert beside == {"retinanet_x101_r50": (37.4, 40.3, 40.7), "fcos_r101_r50": (38.5, 39.8, 40.7)}
    for row in PAPER_ROWS.values():
        assert (row.intra_weight, row.inter_weight, row.learning_rate, row.epochs) == (10, 0, 0.01, 24)
    row = PAPER_ROWS["fcos_r101_r50"]
    assert sum(p.numel() for p in detector(row.architecture, row.student, 91).parameters()) > 30e6


@pytest.mark.parametrize("architecture", DETECTORS)
def test_two_steps_of_distillation(architecture, train, val, tmp_path):
    teacher, student = network(architecture, width=16, channels=128, seed=1), network(architecture)
    before = weights(teacher)
    loss = PatchCKALoss(inter_weight=10, mimic_weight=1)
    result = distill_detector(
        teacher, student, train, val, loss, steps=2, batch_size=2, output_dir=tmp_path, log_every=1, progress=False
    )
    assert {"intra", "inter", "mimic"} <= set(result.history.columns)
    assert result.history["step"].tolist() == [1, 2]
    assert np.isfinite(result.history.iloc[-1].to_numpy()).all()
    assert set(result.scores) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert torch.equal(weights(teacher), before)  # batch norm's statistics too
    assert teacher.training
    assert student.training
    assert all(p.requires_grad for p in teacher.parameters())
    files = {
        "best.safetensors",
        "last.safetensors",
        "history.csv",
        "scores.csv",
        "settings.json",
        "checkpoint.pt",
        "checkpoint.previous.pt",
    }
    assert {path.name for path in tmp_path.iterdir()} == files
    assert next(loss.parameters()).shape == (128, 64, 1, 1)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train):
    def run(seed):
        student = network()
        distill_detector(
            network(seed=1), student, train, loss=PatchCKALoss(), steps=2, batch_size=2, seed=seed, progress=False
        )
        return weights(student)

    first = run(0)
    state = torch.get_rng_state()
    assert torch.equal(run(0), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(run(1), first)


def test_training_alone_has_detection_losses_only(train):
    result = distill_detector(None, network(), train, steps=1, batch_size=2, progress=False)
    assert set(result.history.columns) == {
        "step", "loss", "classification", "bbox_regression", "bbox_ctrness", "lr", "seconds"
    }  # fmt: skip
    assert result.scores == {}


def test_the_teacher_sees_the_students_pictures_and_the_gradient_reaches_the_backbone(train):
    """The intra term of the first step equals the loss of maps that are computed by hand."""
    teacher, student = network(seed=1, width=16), network()
    images, _ = collate_lists([train[i] for i in range(6)])
    with torch.no_grad():
        given = student.transform(images)[0].tensors
        ours = list(student.backbone(given).values())[:4]
        theirs = list(teacher.eval().backbone(given).values())[:4]
    expected = float(PatchCKALoss()(ours, theirs))
    result = distill_detector(teacher, student, train, loss=PatchCKALoss(), steps=1, batch_size=6, progress=False)
    assert result.history["intra"][0] == pytest.approx(expected, rel=1e-5)


class Blank(torch.utils.data.Dataset):
    """Pictures without boxes."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index))
        return image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def test_pictures_without_boxes_and_a_batch_of_one():
    result = distill_detector(
        network(seed=1), network(), Blank(), Blank(), PatchCKALoss(), steps=2, batch_size=1, progress=False
    )
    assert np.isfinite(result.history.to_numpy()).all()
    assert result.scores["AP"] == -1.0  # the value of pycocotools for no objects


class Prepared(nn.Module):
    """Returns prepared detections, one for each picture."""

    def __init__(self, answers):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers = iter(answers)

    def forward(self, images):
        return [next(self.answers) for _ in images]


def test_average_precision_is_that_of_pycocotools_on_the_file(tmp_path):
    """Crowds, annotated areas that differ from the boxes, and false detections inside and outside of crowds."""
    rng = np.random.default_rng(0)
    images, annotations, answers, results = [], [], [], []
    for number in range(1, 7):
        Image.fromarray(np.zeros((300, 300), np.uint8)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 300, "width": 300})
        corners, scores, labels = [], [], []
        for _ in range(8):
            left, top, width, height = (int(v) for v in (*rng.integers(0, 200, 2), *rng.integers(10, 100, 2)))
            entry = {"image_id": number, "category_id": int(rng.integers(1, 3)), "bbox": [left, top, width, height]}
            area = width * height * float(rng.uniform(0.2, 1))
            crowd = int(rng.random() < 0.3)
            outline = [[left, top, left + width, top, left, top + height]]
            more = {"id": len(annotations) + 1, "area": area, "iscrowd": crowd, "segmentation": outline}
            annotations.append(entry | more)
            for moved in rng.normal(0, 5, (2, 4)):
                box = np.maximum(np.array([left, top, width, height]) + moved, 1).round()  # exact in float32
                score = float(rng.random())
                results.append(entry | {"bbox": box.tolist(), "score": score})
                corners.append([box[0], box[1], box[0] + box[2], box[1] + box[3]])
                scores.append(score)
                labels.append(entry["category_id"])
        answers.append(
            {
                "boxes": torch.tensor(np.array(corners), dtype=torch.float32),
                "scores": torch.tensor(scores),
                "labels": torch.tensor(labels),
            }
        )
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    truth = COCO(tmp_path / "a.json")
    reference = COCOeval(truth, truth.loadRes(results), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    found = average_precision(Prepared(answers), CocoBoxes(tmp_path, tmp_path / "a.json"), batch_size=4, progress=False)
    assert 0.05 < found["AP"] < 0.95
    np.testing.assert_allclose(list(found.values()), reference.stats[:6], atol=1e-6)


class Oracle(nn.Module):
    """Finds every box, moved by ``shift``."""

    def __init__(self, data, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers = iter([data[i][1] for i in range(len(data))])
        self.shift = shift

    def forward(self, images):
        found = [next(self.answers) for _ in images]
        return [
            {"boxes": t["boxes"] + self.shift, "labels": t["labels"], "scores": torch.ones(len(t["labels"]))}
            for t in found
        ]


def test_average_precision_of_perfect_and_of_moved_boxes(val):
    assert average_precision(Oracle(val), val, progress=False)["AP"] == pytest.approx(1.0)
    moved = average_precision(Oracle(val, shift=40.0), val, progress=False)
    assert moved["AP"] < 0.1
    assert moved["APl"] == -1.0


def test_mixed_precision(train):
    losses = {}
    for name in ("no", "bf16"):
        result = distill_detector(
            network(seed=1, width=16),
            network(),
            train,
            loss=PatchCKALoss(inter_weight=10, mimic_weight=1),
            steps=2,
            batch_size=2,
            mixed_precision=name,
            log_every=1,
            progress=False,
        )
        losses[name] = result.history["loss"].to_numpy()
    np.testing.assert_allclose(losses["bf16"], losses["no"], rtol=0.05)


def test_boxes_out_of_their_picture_train(tmp_path):
    boxes = [([-5, 2, 30, 24], 3, 0), ([70, 2, 5, 5], 3, 0), ([40, 40, 50, 50], 7, 0)]
    data = write_coco(tmp_path, boxes, size=(SIZE, SIZE))
    result = distill_detector(
        network(seed=1, width=16), network(), data, data, PatchCKALoss(), steps=2, batch_size=1, progress=False
    )
    assert np.isfinite(result.history.to_numpy()).all()
    assert 0 <= result.scores["AP"] <= 1


def test_adapters_are_there_before_the_optimiser_and_learn(train):
    start = {}

    def optimizer(parameters, **settings):
        start.update({parameter: parameter.detach().clone() for parameter in parameters})
        return torch.optim.SGD(parameters, **settings)

    loss = PatchCKALoss()
    teacher, student = network(seed=1, channels=128), network()
    distill_detector(
        teacher, student, train, loss=loss, steps=1, batch_size=2, optimizer=optimizer, weight_decay=0, progress=False
    )
    adapters = list(loss.parameters())
    assert [p.shape for p in adapters] == [shape for _ in range(4) for shape in ((128, 64, 1, 1), (128,))]
    # A constant does not change CKA, so the biases stay.
    assert all(not torch.equal(p, start[p]) for p in adapters if p.ndim == 4)
    assert not set(start) & set(teacher.parameters())


class Empty(DistillationLoss):
    def terms(self, *arguments):
        return {"nothing": arguments[0].features[0].sum() * float("nan")}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"loss": None}, ValueError, "A teacher needs a `loss`"),
        ({"layer": "bakbone"}, ValueError, "bakbone"),
        ({"layer": "transform"}, TypeError, "no map of shape"),
        ({"levels": 7}, ValueError, "`levels` is 7, but the output has 4 maps"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"learning_rate": 0}, ValueError, "`learning_rate` must be positive"),
        ({"clip_norm": 0}, ValueError, "`clip_norm` must be positive or None"),
        ({"loss": Empty()}, FloatingPointError, "The training loss is nan at step 1"),
    ],
)
def test_wrong_settings_are_refused(train, settings, error, message):
    options = {"loss": PatchCKALoss(), "steps": 1, "batch_size": 2, "progress": False, **settings}
    student = network()
    with pytest.raises(error, match=message):
        distill_detector(network(seed=1), student, train, **options)
    assert not any(module._forward_hooks for module in student.modules())


def test_networks_that_normalise_differently(train):
    other = network(seed=1, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="The teacher's image_mean is"):
        distill_detector(other, network(), train, loss=PatchCKALoss(), steps=1)


def test_a_missing_pycocotools_is_named_with_its_install_line(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    for start in (
        lambda: distill_detector(None, network(), train, steps=1),
        lambda: average_precision(network(), train),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'cka-probe\[dense\]'"):
            start()
