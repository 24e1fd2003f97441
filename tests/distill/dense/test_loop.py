"""Runs of detectors and segmenters: files, resume after death, order of the pictures, and refused settings."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_detectors import network, weights
from torch import nn

from cka_probe.distill.dense import PatchCKALoss, SegmentationCKALoss, loop
from cka_probe.distill.dense.batches import PictureBatches
from cka_probe.distill.dense.data import CocoBoxes, LabelMaps
from cka_probe.distill.dense.detection import distill_detector
from cka_probe.distill.dense.networks import SmallResNet, segmenter
from cka_probe.distill.dense.segmentation import distill_segmenter
from cka_probe.distill.dense.settings import DenseSettings
from cka_probe.distill.training.checkpoints import load_checkpoint


class Death(BaseException):
    """The process ends here."""


@contextmanager
def death(after):
    """The process ends in the step after this number of steps; None: never."""
    average, calls = loop.average_gradients, iter(range(10**6))

    def counted(*arguments):
        if next(calls) == after:
            raise Death
        average(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "average_gradients", counted)
        yield


def detect(scenes, directory=None, after=None, **options):
    """Six pictures with random flips: three steps an epoch, seven in all; momentum, adapters, means over two steps."""
    train = CocoBoxes(scenes.train_images, scenes.train_annotations, flip=0.5)
    test = CocoBoxes(scenes.val_images, scenes.val_annotations)
    loss = PatchCKALoss(mimic_weight=0.1)
    teacher = network(width=16, channels=128, seed=1)
    options = {"steps": 7, "batch_size": 2, "log_every": 2, "checkpoint_steps": 2, "progress": False, **options}
    with death(after):
        return distill_detector(teacher, network(), train, test, loss, output_dir=directory, **options)


def segment(scenes, directory=None, after=None, **options):
    """Random crops, and a student with dropout."""
    train = LabelMaps(scenes.root, "train", crop=(48, 48), flip=0.5)
    loss = SegmentationCKALoss()
    torch.manual_seed(0)
    teacher, student = segmenter("deeplabv3", SmallResNet(16), 11), segmenter("deeplabv3", SmallResNet(8), 11)
    assert any(isinstance(module, nn.Dropout) for module in student.modules())
    options = {"steps": 7, "batch_size": 2, "log_every": 2, "checkpoint_steps": 2, "progress": False, **options}
    with death(after):
        return distill_segmenter(teacher, student, train, None, loss, output_dir=directory, **options)


@pytest.fixture(scope="module", params=[detect, segment], ids=["detector", "segmenter"])
def run(request):
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(run, scenes):
    return run(scenes)


def assert_same_run(result, expected):
    assert torch.equal(weights(result.student), weights(expected.student))
    drop = ["seconds"]
    pd.testing.assert_frame_equal(result.history.drop(columns=drop), expected.history.drop(columns=drop), rtol=0)
    assert result.scores == expected.scores


# Steps 2, 3 (end of an epoch), 4 and 6 have checkpoints.
@pytest.mark.parametrize(("after", "epoch", "step"), [(2, 0, 2), (3, 1, 0), (5, 1, 1), (6, 2, 0)])
def test_death_then_resume_gives_the_same_weights_and_history(run, scenes, uninterrupted, tmp_path, after, epoch, step):
    with pytest.raises(Death):
        run(scenes, tmp_path, after=after)
    state = load_checkpoint(tmp_path)
    assert (state["epoch"], state["step"]) == (epoch, step)
    result = run(scenes, tmp_path)
    assert_same_run(result, uninterrupted)
    assert result.notes == (f"resumed after epoch {epoch}, step {step}",)
    saved = pd.read_csv(tmp_path / "history.csv")
    np.testing.assert_allclose(saved["loss"], result.history["loss"])
    last = load_file(result.last_path)
    assert all(torch.equal(last[name], value) for name, value in result.student.state_dict().items())


def test_a_finished_run_is_only_loaded(run, scenes, uninterrupted, tmp_path):
    run(scenes, tmp_path)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    assert_same_run(run(scenes, tmp_path, after=0), uninterrupted)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before


def test_other_settings_are_refused_unless_the_run_starts_again(run, scenes, tmp_path):
    run(scenes, tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"holds a run with other settings: learning_rate was 0.01 and is now 0.02"):
        run(scenes, tmp_path, steps=1, learning_rate=0.02)
    assert run(scenes, tmp_path, steps=1, learning_rate=0.02, resume=False).notes == ()
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["learning_rate"] == 0.02
    assert settings["steps_per_epoch"] == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_the_number_of_workers_does_not_matter(scenes):
    first, second = (detect(scenes, steps=4, workers=workers) for workers in (0, 1))
    assert_same_run(first, second)


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index)


def batches(count, size, world=1, rank=0):
    process = SimpleNamespace(num_processes=world, process_index=rank, device=torch.device("cpu"))
    return PictureBatches(Numbers(count), None, DenseSettings(batch_size=size), process)


def test_batches_are_full_and_processes_share_them():
    shares = [[batch.tolist() for batch in batches(11, 2, world=2, rank=rank).of_epoch(3)] for rank in range(2)]
    assert [[len(batch) for batch in share] for share in shares] == [[2, 2]] * 2
    assert len({index for share in shares for batch in share for index in batch}) == 8
    few = [batch.tolist() for batch in batches(3, 8).of_epoch(0)]
    assert sorted(few[0]) == [0, 1, 2]
    with pytest.raises(ValueError, match="`train` has 1 pictures, but each of the 2 processes needs one"):
        batches(1, 2, world=2)


def test_epochs_differ_and_start_anywhere():
    data = batches(8, 2)
    first, second = ([batch.tolist() for batch in data.of_epoch(epoch)] for epoch in (0, 1))
    assert first != second
    assert [batch.tolist() for batch in data.of_epoch(0, first=3)] == first[3:]
    assert data.sample().tolist() == first[0]


@pytest.mark.parametrize("name", ["steps", "batch_size", "log_every", "checkpoint_steps"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        DenseSettings(**{name: 0})
