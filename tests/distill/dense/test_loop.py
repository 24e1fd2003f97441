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

from cka_probe.distill.dense import PatchCKALoss, SegmentationCKALoss, loop, segmentation
from cka_probe.distill.dense.batches import PictureBatches
from cka_probe.distill.dense.data import CocoBoxes, LabelMaps
from cka_probe.distill.dense.detection import distill_detector
from cka_probe.distill.dense.networks import SmallResNet, segmenter
from cka_probe.distill.dense.segmentation import distill_segmenter
from cka_probe.distill.dense.settings import DenseSettings
from cka_probe.distill.training.checkpoints import load_checkpoint
from cka_probe.distill.training.schedules import DenseSchedule


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


OPTIONS = {"steps": 7, "batch_size": 2, "log_every": 2, "checkpoint_steps": 2, "progress": False}


def detect(scenes, directory=None, after=None, **options):
    """Six pictures with random flips: three steps an epoch, seven in all; momentum, adapters, means over two steps."""
    train = CocoBoxes(scenes.train_images, scenes.train_annotations, flip=0.5)
    test = CocoBoxes(scenes.val_images, scenes.val_annotations)
    loss = PatchCKALoss(mimic_weight=0.1)
    teacher = network(width=16, channels=128, seed=1)
    options = {**OPTIONS, "score_every": 3, **options}
    with death(after):
        return distill_detector(teacher, network(), train, test, loss, output_dir=directory, **options)


def segment(scenes, directory=None, after=None, **options):
    """Random crops, and a student with dropout."""
    train = LabelMaps(scenes.root, "train", crop=(48, 48), flip=0.5)
    loss = SegmentationCKALoss()
    torch.manual_seed(0)
    teacher, student = segmenter("deeplabv3", SmallResNet(16), 11), segmenter("deeplabv3", SmallResNet(8), 11)
    assert any(isinstance(module, nn.Dropout) for module in student.modules())
    with death(after):
        options = {**OPTIONS, **options}
        return distill_segmenter(
            teacher, student, train, options.pop("test", None), loss, output_dir=directory, **options
        )


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


CONSTANT = {"schedule": DenseSchedule(milestones=(), warmup=0.0)}


class Scorer:
    """Scores of a segmenter that are known: one value after the other; NaN is no score."""

    def __init__(self, *values, dies_at=None):
        self.values, self.dies_at, self.states = list(values), dies_at, []

    def __call__(self, model, data, **_options):
        if len(self.states) == self.dies_at:
            raise Death
        for index in range(len(data)):
            data[index]
        torch.rand(3), np.random.rand()  # noqa: NPY002 - a score that draws random numbers must not change the training
        self.states.append({name: value.clone() for name, value in model.state_dict().items()})
        value = self.values[len(self.states) - 1]
        return {"mIoU": value, "IoU 0": value / 2}


class TestScoresOnTheWay:
    @pytest.fixture
    def scored(self, scenes, monkeypatch):
        """Run a segmenter whose scores are given; return its result and the scorer."""

        def go(*values, directory=None, dies_at=None, **options):
            scorer = Scorer(*values, dies_at=dies_at)
            monkeypatch.setattr(segmentation, "mean_iou", scorer)
            options = {"test": LabelMaps(scenes.root, "val"), "score_every": 2, **options}
            return segment(scenes, directory, **options), scorer

        return go

    def test_do_not_change_the_training(self, scenes, scored):
        alone = segment(scenes)
        result, _ = scored(0.1, 0.2, 0.3, 0.4)
        assert torch.equal(weights(result.student), weights(alone.student))

    def test_the_history_has_them_and_the_best_weights_are_kept(self, scored, tmp_path):
        result, scorer = scored(0.1, 0.4, 0.4, 0.2, directory=tmp_path)
        assert result.history["step"].tolist() == [2, 4, 6, 7]
        assert result.history["test_mIoU"].tolist() == [0.1, 0.4, 0.4, 0.2]
        assert result.history["test_IoU 0"].tolist() == [0.05, 0.2, 0.2, 0.1]
        assert (result.best_step, result.best_score, result.last_score) == (4, 0.4, 0.2)
        assert result.scores == {"mIoU": 0.2, "IoU 0": 0.1}
        saved = load_file(result.best_path)
        for name, value in scorer.states[1].items():
            assert torch.equal(result.best_state[name], value)
            assert torch.equal(saved[name], value)
        assert repr(result).startswith("<DenseResult: 7 steps, mIoU last 0.2000, best 0.4000 (step 4), in ")

    def test_rows_of_scores_lie_between_those_of_the_log(self, scored):
        result, _ = scored(0.5, 0.5, 0.6, score_every=3, log_every=4)
        assert result.history["step"].tolist() == [3, 4, 6, 7]
        assert result.history["test_mIoU"].isna().tolist() == [False, True, False, False]

    def test_without_score_every_the_last_step_is_scored(self, scored, tmp_path):
        result, _ = scored(0.5, directory=tmp_path, score_every=None)
        assert result.history["test_mIoU"].isna().tolist() == [True, True, True, False]
        assert (result.best_step, result.best_score) == (7, 0.5)

    def test_an_undefined_score_is_never_the_best(self, scored, tmp_path):
        result, _ = scored(np.nan, 0.1, np.nan, 0.05, directory=tmp_path)
        assert (result.best_step, result.best_score) == (4, 0.1)
        nothing, _ = scored(*[np.nan] * 4, directory=tmp_path / "other")
        assert nothing.best_step is None
        assert np.isnan(nothing.best_score)
        assert nothing.best_path is None

    def test_without_test_data_there_is_no_best(self, scenes, tmp_path):
        result = segment(scenes, tmp_path, steps=1)
        assert (result.best_step, result.best_path, result.best_state) == (None, None, {})
        assert not (tmp_path / "best.safetensors").exists()
        with pytest.raises(ValueError, match="`score_every` scores on the test data, but `test` is None"):
            segment(scenes, score_every=1)

    @pytest.mark.parametrize("dies_at", [0, 1, 3])
    def test_death_while_scoring_then_resume(self, scored, tmp_path, dies_at):
        values = (0.3, 0.1, 0.4, 0.2)
        expected, _ = scored(*values)
        with pytest.raises(Death):
            scored(*values, directory=tmp_path, dies_at=dies_at)
        state = load_checkpoint(tmp_path)
        assert state["epoch"] * 3 + state["step"] == (2, 4, 6, 7)[dies_at]  # no step is repeated
        result, _ = scored(*values[dies_at:], directory=tmp_path)
        assert_same_run(result, expected)
        assert result.best_step == expected.best_step
        assert all(torch.equal(value, expected.best_state[name]) for name, value in result.best_state.items())

    @pytest.mark.parametrize("after", [1, 3, 6])
    def test_death_between_scores_then_resume(self, scored, tmp_path, after):
        values = (0.3, 0.1, 0.4, 0.2)
        expected, _ = scored(*values)
        with pytest.raises(Death):
            scored(*values, directory=tmp_path, after=after)
        result, _ = scored(*values[after // 2 :], directory=tmp_path)
        assert_same_run(result, expected)
        assert all(torch.equal(value, expected.best_state[name]) for name, value in result.best_state.items())

    def test_other_test_data_are_refused(self, scenes, scored, tmp_path):
        scored(0.1, 0.2, 0.3, 0.4, directory=tmp_path)
        val = LabelMaps(scenes.root, "val")
        items = [val[index] for index in range(len(val))]
        items[2] = (items[2][0] + 1e-3, items[2][1])
        with pytest.raises(ValueError, match=r"`test` gives other samples"):
            scored(directory=tmp_path, test=items)
        with pytest.raises(ValueError, match=r"test_samples was 4 and is now 3"):
            scored(directory=tmp_path, test=items[:3])
        with pytest.raises(ValueError, match=r"score_every was 2 and is now None; test_samples was 4 and is now None"):
            segment(scenes, tmp_path)


class TestMoreSteps:
    @pytest.mark.parametrize("first", [4, 6])  # in the middle of an epoch, and at its end
    def test_equal_a_longer_run_where_the_schedule_permits(self, run, scenes, tmp_path, first):
        options = {**CONSTANT, "score_every": None}
        run(scenes, tmp_path, steps=first, **options)
        longer = run(scenes, tmp_path, **options)
        whole = run(scenes, **options)
        assert torch.equal(weights(longer.student), weights(whole.student))
        assert longer.history["loss"].tolist() == whole.history["loss"].tolist()
        assert longer.scores == whole.scores

    def test_are_refused_where_the_finished_steps_would_have_another_rate(self, run, scenes, tmp_path):
        run(scenes, tmp_path, steps=3)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        message = r"a run of 3 steps, which cannot become one of 30: the schedule of 30 steps has another learning rate"
        with pytest.raises(ValueError, match=message):
            run(scenes, tmp_path, steps=30)
        with pytest.raises(ValueError, match=r"cannot become one of 2: 3 steps are finished already"):
            run(scenes, tmp_path, steps=2)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
