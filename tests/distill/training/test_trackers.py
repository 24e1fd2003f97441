"""Logs through accelerate's trackers: TensorBoard, and a tracker written here."""

import pytest
from accelerate.tracking import GeneralTracker
from small_runs import cpu_accelerator

from cka_probe.distill.training.trackers import trackers_of


class Remembered(GeneralTracker):
    name = "remembered"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.settings, self.values, self.finished = None, [], 0

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **kwargs):
        self.values.append((step, values))

    def finish(self):
        self.finished += 1


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_values_go_to_every_tracker_and_all_are_finished(tmp_path):
    mine = Remembered()
    with cpu_accelerator() as accelerator:
        settings = {"epochs": 2, "layers": ["stem"]}
        with trackers_of(accelerator, ["tensorboard", mine], tmp_path, settings, None) as log:
            log({"loss": 1.5}, 1)
            log({"loss": 0.5}, 2)
        assert accelerator.trackers == []
    assert mine.settings == {"epochs": 2, "layers": "['stem']"}
    assert mine.values == [(1, {"loss": 1.5}), (2, {"loss": 0.5})]
    assert mine.finished == 1
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 1.5), (2, 0.5)]}


def test_a_resumed_run_hides_what_it_logs_again(tmp_path):
    with cpu_accelerator() as accelerator:
        for first, steps in ((None, (1, 2, 3)), (2, (2, 3))):
            with trackers_of(accelerator, "tensorboard", tmp_path, {}, first) as log:
                for step in steps:
                    log({"loss": step + 10 * (first is not None)}, step)
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 1.0), (2, 12.0), (3, 13.0)]}


def test_trackers_of_the_callers_accelerator_get_the_values_and_stay_open():
    mine = Remembered()
    with cpu_accelerator(log_with=mine) as accelerator:
        accelerator.init_trackers("my project")
        with trackers_of(accelerator, None, None, {}, None) as log:
            log({"loss": 1.0}, 1)
        assert accelerator.trackers == [mine]
    assert mine.values == [(1, {"loss": 1.0})]
    assert mine.finished == 0


def test_trackers_are_finished_after_an_error():
    mine = Remembered()
    with (
        cpu_accelerator() as accelerator,
        pytest.raises(KeyboardInterrupt),
        trackers_of(accelerator, mine, None, {}, 1),
    ):
        raise KeyboardInterrupt
    assert mine.finished == 1


@pytest.mark.parametrize(
    ("log_with", "kind", "message"),
    [
        ("tensorbord", ValueError, "accelerate has no tracker 'tensorbord'. It has .*wandb"),
        ("tensorboard", ValueError, "`log_with`='tensorboard' needs an `output_dir`"),
        (["aim"], ModuleNotFoundError, "log_with='aim' needs aim, which is not installed: pip install aim"),
        (3, TypeError, "a name, a GeneralTracker of accelerate, or a list of them, got 3"),
    ],
)
def test_what_is_no_tracker_is_refused(log_with, kind, message):
    with (
        cpu_accelerator() as accelerator,
        pytest.raises(kind, match=message),
        trackers_of(accelerator, log_with, None, {}, None),
    ):
        pass
