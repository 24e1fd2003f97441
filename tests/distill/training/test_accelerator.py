"""The precision that was asked for is the one that is used, or an error says why not."""

from datetime import timedelta

import pytest
from small_runs import cpu_accelerator, run

from cka_probe.distill.training.accelerator import accelerator_for


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_fp16_on_a_cpu_is_refused_by_the_name_of_the_argument():
    with pytest.raises(ValueError, match=r"mixed_precision='fp16' needs a GPU.*float32. Use 'bf16' or 'no'"):
        run(mixed_precision="fp16")
    with (
        cpu_accelerator(mixed_precision="fp16") as accelerator,
        pytest.raises(ValueError, match=r"mixed_precision='fp16' needs a GPU"),
    ):
        run(accelerator=accelerator)


def test_a_precision_that_the_launcher_asks_for_is_not_lost(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"asks for 'bf16' .*mixed_precision='no' decides. Set mixed_precision='bf16'"):
        run()
    with accelerator_for(None, "bf16", 1.0) as accelerator:
        assert accelerator.mixed_precision == "bf16"


def test_processes_wait_for_each_other_for_fifteen_minutes(monkeypatch):
    given = {}

    def accelerator(**options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    with pytest.raises(KeyboardInterrupt), accelerator_for(None, "no", 1.0):
        pass
    assert [handler.to_kwargs() for handler in given["kwargs_handlers"]][1] == {"timeout": timedelta(minutes=15)}
