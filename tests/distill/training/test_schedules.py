"""Learning-rate schedules."""

import pytest

from cka_probe.distill.training.schedules import CosineDecay, DenseSchedule, StepDecay


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
