"""Clipping, schedules, averages, early stopping and evaluations of distill() against loops written out by hand."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_runs import ConvNet, Mimic, images, network, run, weights
from torch.optim import lr_scheduler as torch_schedules
from torch.utils.data import DataLoader

from cka_probe.distill.training.evaluation import Evaluation
from cka_probe.distill.training.schedules import CosineDecay, PerStep

TRAIN, TEST = images(24), images(30, seed=1)
EPOCHS, STEPS = 4, 3  # three batches of 8 in the order of the data


def constant(_epoch, _epochs):
    return 1.0


def distilled(student=None, teacher=None, loss=None, **options):
    options = {"epochs": EPOCHS, "weight_decay": 0.01, "learning_rate": 0.2, "schedule": constant, **options}
    train, test = DataLoader(TRAIN, 8), DataLoader(TEST, 16)
    return run(student, teacher, loss, train=train, test=test, batch_size=None, **options)


def accuracy(model, largest=1):
    model.eval()
    with torch.no_grad():
        best = model(TEST.tensors[0]).topk(largest, dim=1).indices
    model.train()
    return (best == TEST.tensors[1][:, None]).any(1).double().mean().item()


def by_hand(model, scheduler_of=None, per_step=False, clip=None, decay=None, factor=None, parts=1):
    """A plain loop. Yields the finished steps, the rate, the loss, and the model or its average, after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    scheduler = None if scheduler_of is None else scheduler_of(optimizer)
    average = copy.deepcopy(model)
    for done in range(EPOCHS * STEPS):
        x, y = (part[done % STEPS * 8 : done % STEPS * 8 + 8] for part in TRAIN.tensors)
        if factor is not None:
            optimizer.param_groups[0]["lr"] = 0.2 * factor(done)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None and (per_step or (done + 1) % STEPS == 0):
            plateau = isinstance(scheduler, torch_schedules.ReduceLROnPlateau)
            scheduler.step(*([accuracy(model)] if plateau else []))
        if decay is not None:
            for one, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                one.copy_(torch.lerp(one, other, 1 - decay) if done and one.is_floating_point() else other)
        yield done + 1, rate, loss.item(), model if decay is None else average


def assert_equal(model, reference, atol=1e-6):
    torch.testing.assert_close(weights(model), weights(reference), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_gradients_are_clipped_as_torch_clips_them(clip):
    reference, plain = network(1), network(1)
    *_, last = by_hand(reference, clip=clip)
    for _ in by_hand(plain):
        pass
    assert_equal(distilled(clip_norm=clip).student, last[3])
    assert torch.equal(weights(reference), weights(plain)) == (clip == 1e9)


@pytest.mark.parametrize("parts", [2, 3])
def test_microbatches_with_the_exact_loss_are_clipped_as_the_whole_batch(parts):
    def go(**options):
        return distilled(network(1, norm=False), network(2), Mimic(), clip_norm=0.05, **options).student

    assert_equal(go(accumulation_steps=parts), go())


SCHEDULES = {
    "cosine": (partial(torch_schedules.CosineAnnealingLR, T_max=5), False),
    "one cycle": (partial(torch_schedules.OneCycleLR, max_lr=0.4, total_steps=EPOCHS * STEPS), True),
    "plateau": (partial(torch_schedules.ReduceLROnPlateau, mode="max", patience=0, factor=0.5), False),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_of_torch_is_advanced_as_in_a_plain_loop(name):
    factory, per_step = SCHEDULES[name]
    steps = list(by_hand(reference := network(1), factory, per_step))
    result = distilled(schedule=PerStep(factory) if per_step else factory)
    assert_equal(result.student, reference)
    assert result.history["lr"].tolist() == [rate for done, rate, *_ in steps if done % STEPS == 0]


def test_a_plateau_without_test_data_is_refused():
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau needs scores .* Give test data"):
        run(schedule=SCHEDULES["plateau"][0], test=None)


def test_a_schedule_for_each_step_with_a_warm_up():
    schedule = CosineDecay(final=0.1, warmup=4)
    *_, last = by_hand(network(1), factor=lambda step: schedule(step, EPOCHS * STEPS))
    result = distilled(schedule=PerStep(schedule))
    assert_equal(result.student, last[3])
    assert result.history["lr"].iloc[-1] == last[1]


def test_the_average_is_scored_saved_and_left_in_the_student(tmp_path):
    expected = [accuracy(average) for done, *_, average in by_hand(network(1), decay=0.7) if done % STEPS == 0]
    *_, last = by_hand(reference := network(1), decay=0.7)
    result = distilled(ema=0.7, output_dir=tmp_path)
    assert_equal(result.student, last[3])
    assert not torch.allclose(weights(reference), weights(last[3]), atol=1e-3)
    assert result.history["test_accuracy"].tolist() == pytest.approx(expected)
    saved = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in result.student.state_dict().items())
    best = network(3)
    best.load_state_dict(result.best_state)
    assert accuracy(best) == pytest.approx(max(expected))


def test_a_run_stops_when_the_score_no_longer_improves():
    whole = distilled(epochs=12, learning_rate=1e-3)
    scores = whole.history["test_accuracy"].tolist()
    last = next(n for n in range(3, 12) if max(scores[: n - 2]) >= max(scores[: n + 1]))
    assert last < 11
    result = distilled(epochs=12, learning_rate=1e-3, evaluation=Evaluation(patience=3))
    assert result.history["test_accuracy"].tolist() == scores[: last + 1]
    assert result.notes[-1] == f"stopped after epoch {last + 1}: no better test_accuracy in the last 3 evaluations"
    assert distilled(epochs=last, learning_rate=1e-3, evaluation=Evaluation(patience=3)).notes == ()


def test_evaluations_within_an_epoch_score_the_network_of_that_step_and_change_nothing():
    steps = list(by_hand(copy.deepcopy(network(1))))
    result = distilled(evaluation=Evaluation(every=5))
    history = result.history
    assert history["step"].tolist() == [5, 10, 12]
    assert history["epoch"].tolist() == [2, 4, 4]
    losses = [loss for _, _, loss, _ in steps]
    expected = [np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])]
    np.testing.assert_allclose(history["train_loss"], expected, atol=1e-6)
    scores = [accuracy(model) for done, *_, model in by_hand(network(1)) if done in (5, 10, 12)]
    assert history["test_accuracy"].tolist() == pytest.approx(scores)

    def noisy(**options):
        return weights(distilled(network(1, dropout=0.5), **options).student)

    assert torch.equal(noisy(evaluation=Evaluation(every=2)), noisy())


def test_more_columns_are_those_of_torch():
    *_, last = by_hand(network(1))
    result = distilled(evaluation=Evaluation(columns=("loss", "top2", "top1")))
    row = result.history.iloc[-1]
    assert row["test_top2"] == pytest.approx(accuracy(last[3], 2))
    assert row["test_top1"] == row["test_accuracy"]
    last[3].eval()
    assert row["test_loss"] == pytest.approx(
        F.cross_entropy(last[3](TEST.tensors[0]), TEST.tensors[1]).item(), abs=1e-6
    )
    with pytest.raises(ValueError, match=r"`columns` .*top4.*3 classes"):
        distilled(evaluation=Evaluation(columns=("top4",)))


def test_the_progress_of_the_run_reaches_the_loss():
    class Watching(Mimic):
        def __init__(self):
            super().__init__()
            self.progress, self.seen = 0.0, []

        def terms(self, *arguments):
            self.seen.append(self.progress)
            return super().terms(*arguments)

    loss = Watching()
    distilled(teacher=network(2), loss=loss)
    assert loss.seen[-EPOCHS * STEPS :] == [step / (EPOCHS * STEPS) for step in range(EPOCHS * STEPS)]


def test_channels_last_gives_the_same_student_and_its_own_strides_back():
    def go(**options):
        return distilled(network(1, width=8), network(2, width=8), Mimic(), student_layers=["norm"], **options).student

    student = go(channels_last=True)
    assert_equal(student, go(), atol=1e-5)
    assert all(value.is_contiguous() for value in student.state_dict().values())


def test_a_student_of_other_classes_learns_from_features():
    def feature_loss(student, teacher, _target):
        return F.mse_loss(student.features[0], teacher.features[0])

    teacher = network(2, classes=5)
    result = distilled(network(1), teacher, feature_loss, student_layers=["norm"])
    assert np.isfinite(result.history["train_loss"]).all()
    assert isinstance(result.student, ConvNet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "`clip_norm` must be positive or None, got 0.0"),
        ({"ema": 1.0}, "`ema` is the decay of the moving average"),
        ({"schedule": partial(torch_schedules.OneCycleLR, max_lr=1, total_steps=12)}, r"OneCycleLR .*PerStep"),
        ({"schedule": torch_schedules.ReduceLROnPlateau}, "Use mode='max'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        distilled(**options)
