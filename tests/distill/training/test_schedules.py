"""Learning-rate schedules."""

import math

import pytest

from cka_probe.distill.training.schedules import CosineDecay, DenseSchedule, PerStep, StepDecay


def test_the_schedule_is_2x():
    schedule = DenseSchedule(warmup=0.0)
    assert [schedule(epoch, 24) for epoch in (0, 15)] == [1.0, 1.0]
    assert schedule(16, 24) == pytest.approx(0.1)
    assert schedule(22, 24) == pytest.approx(0.01)


def test_schedules():
    assert [StepDecay()(epoch, 240) for epoch in (0, 149, 150, 180, 210)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert StepDecay((0.5,), warmup=3)(0, 8) == 0.25
    assert CosineDecay(final=0.1, warmup=1)(0, 11) == 0.5
    assert CosineDecay(final=0.1)(5, 10) == pytest.approx(0.55)
    with pytest.raises(ValueError, match="milestones must be positive"):
        StepDecay((0,))


@pytest.mark.parametrize("make", [StepDecay, CosineDecay])
def test_a_warm_up_below_one_is_a_fraction_of_the_run(make):
    assert [make(warmup=0.1)(step, 50) for step in range(50)] == [make(warmup=5)(step, 50) for step in range(50)]
    assert [make(warmup=0.1)(step, 30) for step in range(30)] == [make(warmup=3)(step, 30) for step in range(30)]
    with pytest.raises(ValueError, match=r"warmup must be 0 or more, got -1"):
        make(warmup=-1)


def test_the_factors_of_epochs_are_the_same_bits_as_before_warm_ups_could_be_fractions():
    for epoch in range(240):
        cosine = 0.01 + (1 - 0.01) * (1 + math.cos(math.pi * ((epoch - 5) / 235))) / 2
        assert CosineDecay(0.01, 5)(epoch, 240) == ((epoch + 1) / 6 if epoch < 5 else cosine)
        warm = (epoch + 1) / 6 if epoch < 5 else 1.0
        assert StepDecay(warmup=5)(epoch, 240) == warm * 0.1 ** sum(epoch >= start for start in (150, 180, 210))


def test_per_step_takes_a_schedule_and_not_another_per_step():
    assert PerStep(CosineDecay()).schedule == CosineDecay()
    with pytest.raises(TypeError, match=r"PerStep needs a schedule, got 0.1"):
        PerStep(0.1)
    with pytest.raises(TypeError, match=r"PerStep needs a schedule, got PerStep"):
        PerStep(PerStep(CosineDecay()))
