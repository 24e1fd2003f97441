"""Runs with every option that has a state: killed in any step they end with the same bits; another value is refused."""

from functools import partial

import pandas as pd
import pytest
import torch
from accelerate.tracking import GeneralTracker
from small_runs import Mimic, Noisy, images, network, run, weights
from torch.optim import lr_scheduler as torch_schedules

from cka_probe.distill.training import student_loop
from cka_probe.distill.training.evaluation import Evaluation
from cka_probe.distill.training.schedules import CosineDecay, PerStep

PLATEAU = partial(torch_schedules.ReduceLROnPlateau, mode="max", patience=0, factor=0.5)
CYCLE = PerStep(partial(torch_schedules.OneCycleLR, max_lr=0.2, total_steps=15))
CASES = {
    "steps": {"schedule": PerStep(CosineDecay(warmup=3)), "evaluation": Evaluation(every=2, columns=("loss", "top2"))},
    "plateau": {"schedule": PLATEAU, "evaluation": Evaluation(every=3, patience=3)},
    "cycle": {"schedule": CYCLE, "channels_last": True},
}


def go(directory=None, **options):
    options = {"epochs": 3, "ema": 0.8, "clip_norm": 0.5, "checkpoint_steps": 1, "student_layers": ["norm"], **options}
    return run(network(1, dropout=0.3), network(2), Mimic(), train=Noisy(images()), output_dir=directory, **options)


def stopped(after, job, error=KeyboardInterrupt):
    steps = iter(range(10**6))

    def stop(*_):
        if next(steps) == after:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_loop, "average_gradients", stop)
        with pytest.raises(error):
            job()


def assert_same(result, expected):
    assert torch.equal(weights(result.student), weights(expected.student))
    assert all(torch.equal(value, expected.best_state[name]) for name, value in result.best_state.items())
    pd.testing.assert_frame_equal(result.history.drop(columns="seconds"), expected.history.drop(columns="seconds"))


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_stopped_in_any_step_ends_with_the_same_bits(name, tmp_path):
    whole = go(**CASES[name])
    for after in (1, 4, 7):
        directory = tmp_path / str(after)
        stopped(after, lambda directory=directory: go(directory, **CASES[name]))
        result = go(directory, **CASES[name])
        assert_same(result, whole)
        assert_same(go(directory, **CASES[name]), whole)  # it is finished, and only loaded


CHANGES = {
    "ema": 0.9,
    "clip_norm": 0.4,
    "schedule": PerStep(CosineDecay(warmup=4)),
    "channels_last": True,
    "compile": True,
    "evaluate_every": Evaluation(every=3, columns=("loss", "top2")),
    "patience": Evaluation(every=2, patience=9, columns=("loss", "top2")),
    "columns": Evaluation(every=2, columns=("loss",)),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    directory = tmp_path_factory.mktemp("started")
    stopped(4, lambda: go(directory, **CASES["steps"]))
    return directory


@pytest.mark.parametrize("name", CHANGES)
def test_another_option_is_refused_by_its_name(name, started):
    argument = "evaluation" if isinstance(CHANGES[name], Evaluation) else name
    with pytest.raises(ValueError, match=rf"other settings: {name} was .*Use another output_dir, or resume=False"):
        go(started, **{**CASES["steps"], argument: CHANGES[name]})


def test_a_longer_run_goes_on_with_a_scheduler_of_torch(tmp_path):
    schedule = partial(torch_schedules.StepLR, step_size=2)
    go(tmp_path, schedule=schedule)
    assert_same(go(tmp_path, schedule=schedule, epochs=5), go(schedule=schedule, epochs=5))
    go(tmp_path / "b", schedule=PerStep(CosineDecay()), epochs=1)
    with pytest.raises(ValueError, match=r"cannot become one of 9: .*another learning rate"):
        go(tmp_path / "b", schedule=PerStep(CosineDecay()), epochs=9)


class Watch:
    """Counts its calls, draws random numbers, runs the student in eval mode, and ends the run at a step."""

    def __init__(self, until=None):
        self.until, self.steps, self.rows = until, [], []

    def on_step(self, moment):
        torch.rand(2)
        moment.student.eval()
        self.steps.append(moment.step)
        return moment.step == self.until

    def on_epoch(self, moment):
        self.rows.append(dict(moment.row))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])


def test_callbacks_see_every_step_and_row_and_change_nothing(tmp_path):
    watch = Watch()
    result = go(callbacks=[watch])
    assert_same(result, go())
    assert watch.steps == list(range(1, 16))
    assert watch.rows == result.history.to_dict("records")
    again = Watch()
    stopped(7, lambda: go(tmp_path, callbacks=[Watch()]))
    assert_same(go(tmp_path, callbacks=[again]), result)
    assert again.steps == watch.steps


def test_a_callback_ends_the_run_and_the_next_call_goes_on(tmp_path):
    result = go(tmp_path, callbacks=[Watch(until=7)])
    assert result.history["epoch"].tolist() == [1, 2]
    assert "ended by a callback after step 7" in result.notes[-1]
    assert (tmp_path / "last.safetensors").exists()
    whole, later = go(), go(tmp_path, callbacks=[Watch()])
    assert torch.equal(weights(later.student), weights(whole.student))
    assert later.history["epoch"].tolist() == [1, 2, 2, 3]


def test_an_error_in_a_callback_leaves_everything_as_it_was():
    class Broken:
        def on_step(self, moment):
            raise RuntimeError("boom")

    student = network(1)
    with pytest.raises(RuntimeError, match="boom"):
        run(student, channels_last=True, ema=0.9, callbacks=[Broken()])
    assert student.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


class Remembered(GeneralTracker):
    name = "remembered"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.logged = {}

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **kwargs):
        self.logged[step] = values


def test_rows_go_to_the_trackers(tmp_path):
    mine = Remembered()
    result = go(tmp_path, log_with=[mine, "tensorboard"])
    assert list(mine.logged) == [1, 2, 3]
    assert mine.logged[2]["test_accuracy"] == result.history["test_accuracy"][1]
    assert mine.settings["ema"] == 0.8
    assert list((tmp_path / "tensorboard").iterdir())
    stepwise = Remembered()
    go(log_with=stepwise, evaluation=Evaluation(every=6))
    assert list(stepwise.logged) == [6, 12, 15]
    with pytest.raises(ValueError, match="`log_with`='tensorboard' needs an `output_dir`"):
        go(log_with="tensorboard")
