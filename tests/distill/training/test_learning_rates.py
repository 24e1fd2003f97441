"""Learning rates of a run against plain loops: functions of the epoch or step, and schedulers of torch."""

from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules

from cka_probe.distill.training.learning_rates import LearningRates, check_schedule, makes_scheduler
from cka_probe.distill.training.schedules import CosineDecay, PerStep, StepDecay

EPOCHS, STEPS = 4, 3  # steps in each epoch


def made_optimizer():
    groups = [{"params": [torch.zeros(2, requires_grad=True)], "lr": 0.01}, {"params": [torch.zeros(1)]}]
    return torch.optim.SGD(groups, lr=0.1)


def rates_of_a_run(schedule, scores=(0.1,) * EPOCHS, first=0, state=None):
    """Rates of the two groups in every step, the `rate` of the object, and the states after every epoch."""
    optimizer = made_optimizer()
    rates = LearningRates(schedule, optimizer, 0.1)
    if state is not None:
        optimizer.load_state_dict(state[0])
        rates.load_state_dict(state[1])
    found, shown, states = [], [], []
    for epoch in range(first, EPOCHS):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            rates.begin_step(epoch, EPOCHS, step, EPOCHS * STEPS)
            found.append([group["lr"] for group in optimizer.param_groups])
            shown.append(rates.rate)
            optimizer.step()
            rates.end_step()
        rates.end_epoch()
        rates.evaluated(scores[epoch])
        states.append((optimizer.state_dict(), rates.state_dict()))
    return found, shown, states


def torch_rates(factory, per_step, scores=(0.1,) * EPOCHS):
    """The same by torch alone."""
    optimizer = made_optimizer()
    scheduler = factory(optimizer)
    found = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if per_step:
                scheduler.step()
        if isinstance(scheduler, torch_schedules.ReduceLROnPlateau):
            scheduler.step(scores[epoch])
        elif not per_step:
            scheduler.step()
    return found


def sequence(optimizer):
    warm = torch_schedules.LinearLR(optimizer, 0.25, total_iters=2)
    return torch_schedules.SequentialLR(optimizer, [warm, torch_schedules.ExponentialLR(optimizer, 0.5)], [2])


FACTORIES = {
    "StepLR": partial(torch_schedules.StepLR, step_size=2),
    "MultiStepLR": lambda optimizer: torch_schedules.MultiStepLR(optimizer, [1, 3]),
    "LambdaLR": lambda optimizer: torch_schedules.LambdaLR(optimizer, lambda n: 1 / (n + 1)),
    "CosineAnnealingLR": lambda optimizer: torch_schedules.CosineAnnealingLR(optimizer, 12),
    "CosineAnnealingWarmRestarts": lambda optimizer: torch_schedules.CosineAnnealingWarmRestarts(optimizer, 2),
    "OneCycleLR": lambda optimizer, total=12: torch_schedules.OneCycleLR(optimizer, 0.1, total),
    "CyclicLR": lambda optimizer: torch_schedules.CyclicLR(optimizer, 0.001, 0.1, 2, cycle_momentum=False),
    "PolynomialLR": lambda optimizer: torch_schedules.PolynomialLR(optimizer, 12),
    "SequentialLR": sequence,
}


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_schedulers_of_torch_give_torchs_rates_and_resume(name, per_step):
    schedule = PerStep(FACTORIES[name]) if per_step else FACTORIES[name]
    found, shown, states = rates_of_a_run(schedule)
    assert found == torch_rates(FACTORIES[name], per_step)
    assert shown == [rates[0] for rates in found]
    assert len({tuple(rates) for rates in found}) > 1
    resumed, _, _ = rates_of_a_run(schedule, first=2, state=states[1])
    assert resumed == found[2 * STEPS :]


def test_the_plateau_gets_the_scores_and_resumes():
    factory = partial(torch_schedules.ReduceLROnPlateau, mode="max", patience=0, factor=0.5)
    scores = (0.5, 0.4, 0.6, 0.6)
    found, _, states = rates_of_a_run(factory, scores)
    assert found == torch_rates(factory, False, scores)
    assert [rates[1] for rates in found[::STEPS]] == [0.1, 0.1, 0.05, 0.05]
    assert rates_of_a_run(factory, scores, first=2, state=states[1])[0] == found[2 * STEPS :]


def test_factors_of_epochs_and_of_steps():
    found, shown, _ = rates_of_a_run(StepDecay((2,)))
    assert shown == [0.1 * factor for factor in (1.0, 1.0, 0.1, 0.1) for _ in range(STEPS)]
    assert [own for own, _ in found] == [0.01 * factor for factor in (1.0, 1.0, 0.1, 0.1) for _ in range(STEPS)]
    found, shown, states = rates_of_a_run(PerStep(CosineDecay(warmup=4)))
    assert shown == [CosineDecay(warmup=4)(step, 12) * 0.1 for step in range(12)]
    assert states[-1][1] == {}


def test_skipped_steps_do_not_advance_a_scheduler():
    optimizer = made_optimizer()
    rates = LearningRates(PerStep(FACTORIES["StepLR"]), optimizer, 0.1)
    optimizer.step()
    rates.end_step(skipped=True)
    assert rates.state_dict()["last_epoch"] == 0
    rates.end_step()
    assert rates.state_dict()["last_epoch"] == 1


def test_which_functions_make_a_scheduler():
    assert all(makes_scheduler(factory) for factory in FACTORIES.values())
    assert makes_scheduler(torch_schedules.ReduceLROnPlateau)
    for schedule in (StepDecay(), CosineDecay(), lambda epoch, epochs: epoch / epochs, lambda *position: len(position)):
        check_schedule(schedule)
        assert not makes_scheduler(schedule)


@pytest.mark.parametrize(
    ("schedule", "kind", "message"),
    [
        (0.1, TypeError, "`schedule` must be a schedule such as StepDecay"),
        (
            lambda a, b, c: a + b + c,
            TypeError,
            r"must take \(epoch, epochs\) or the optimiser alone.*takes \(a, b, c\)",
        ),
        (torch_schedules.StepLR, TypeError, r"must take .*functools.partial"),
        (
            lambda optimizer: len(optimizer.param_groups),
            TypeError,
            "must return an LRScheduler of torch, but it returned 2",
        ),
        (torch_schedules.ReduceLROnPlateau, ValueError, "mode='min', but the metric .* higher. Use mode='max'"),
        (PerStep(torch_schedules.ReduceLROnPlateau), ValueError, "after each one, not after each step. Leave out"),
        (torch_schedules.StepLR(made_optimizer(), 2), TypeError, r"is a StepLR of another optimiser.*lambda optimizer"),
        (lambda _: torch_schedules.StepLR(made_optimizer(), 2), ValueError, "LRScheduler of another optimiser"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, kind, message):
    with pytest.raises(kind, match=message):
        LearningRates(schedule, made_optimizer(), 0.1)


def test_a_state_that_no_checkpoint_can_hold_is_refused():
    class Odd(torch_schedules.StepLR):
        def state_dict(self):
            return {"file": lambda: None}

    with pytest.raises(ValueError, match="the state of Odd cannot be saved in a checkpoint"):
        LearningRates(lambda optimizer: Odd(optimizer, 1), made_optimizer(), 0.1)


def test_a_cycle_of_another_length_than_the_run_is_refused():
    def cycle(total, wrap=lambda factory: factory):
        return LearningRates(wrap(partial(FACTORIES["OneCycleLR"], total=total)), made_optimizer(), 0.1)

    cycle(4).check_length(4, 12)
    cycle(12, PerStep).check_length(4, 12)
    with pytest.raises(ValueError, match=r"total_steps=12, but it is advanced after each epoch.*PerStep"):
        cycle(12).check_length(4, 12)
    with pytest.raises(
        ValueError, match=r"total_steps=10.*each step, and the run has 12 steps. Give it total_steps=12"
    ):
        cycle(10, PerStep).check_length(4, 12)


def test_longer_runs_are_allowed_where_the_finished_part_would_be_the_same():
    def refused(schedule, finished=(2, 6)):
        rates = LearningRates(schedule, made_optimizer(), 0.1)
        return rates.extension_refused((2, 4), (6, 12), *finished)

    assert refused(StepDecay((3,))) is None
    assert "another learning rate in epoch 2" in refused(CosineDecay())
    assert "schedule of 12 steps has another learning rate in step 2" in refused(PerStep(CosineDecay()))
    assert refused(PerStep(StepDecay((6,)))) is None
    assert refused(FACTORIES["StepLR"]) is None
    assert "5 epochs are finished already" in refused(FACTORIES["StepLR"], (5, 15))
