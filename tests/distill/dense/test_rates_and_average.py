"""Dense training with a scheduler of torch and an average of the weights, against a plain loop."""

import copy
from functools import partial

import pytest
import torch
from small_detectors import weights
from torch.nn import functional
from torch.optim import lr_scheduler as torch_schedules
from torch.utils.data import TensorDataset

from cka_probe.distill.dense import SmallResNet, distill_segmenter, loop, segmenter
from cka_probe.distill.dense.settings import DenseSettings
from cka_probe.distill.training.schedules import CosineDecay, PerStep

STEPS = 5
CYCLE = partial(torch_schedules.OneCycleLR, max_lr=0.05, total_steps=STEPS)


def network():
    torch.manual_seed(0)
    return segmenter("lraspp", SmallResNet(4), 3)


def pictures(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count, 32, 32), generator=generator)
    return TensorDataset(torch.randn(count, 3, 32, 32, generator=generator), labels)


def run(student=None, directory=None, **options):
    options = {
        "steps": STEPS,
        "batch_size": 2,
        "log_every": 1,
        "progress": False,
        "ema": 0.8,
        "schedule": CYCLE,
        **options,
    }
    optimizer = partial(torch.optim.SGD, momentum=0.9)
    return distill_segmenter(
        None, student or network(), pictures(), pictures(4, 1), optimizer=optimizer, output_dir=directory, **options
    )


def test_the_rates_the_clipped_steps_and_the_average_are_those_of_a_plain_loop():
    student, reference = network(), network()
    result = run(student, clip_norm=0.5, weight_decay=0.01)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    scheduler = CYCLE(optimizer)
    images, labels = pictures().tensors
    average, rates = None, []
    for _ in range(STEPS):  # one batch in each epoch: the order of the pictures has no effect
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        functional.cross_entropy(reference(images)["out"], labels).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        state = {name: value.clone() for name, value in reference.state_dict().items()}
        average = average or copy.deepcopy(state)
        for name, value in average.items():
            average[name] = torch.lerp(value, state[name], 0.2) if value.is_floating_point() else state[name]
    assert result.history["lr"].tolist() == rates
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in result.best_state.items())


@pytest.mark.parametrize("schedule", [CYCLE, PerStep(CosineDecay(warmup=2)), "plateau"])
def test_a_run_that_dies_resumes_to_the_same_bits(schedule, tmp_path):
    options = {"checkpoint_steps": 1, "score_every": 2}
    options["schedule"] = (
        partial(torch_schedules.ReduceLROnPlateau, mode="max", patience=0) if schedule == "plateau" else schedule
    )
    whole = run(**options)
    calls = iter(range(100))

    def die(*_):
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "average_gradients", die)
        with pytest.raises(KeyboardInterrupt):
            run(directory=tmp_path, **options)
    result = run(directory=tmp_path, **options)
    assert torch.equal(weights(result.student), weights(whole.student))
    assert result.history["lr"].tolist() == whole.history["lr"].tolist()
    assert torch.equal(weights(run(directory=tmp_path, **options).student), weights(whole.student))
    with pytest.raises(ValueError, match=r"ema was 0.8 and is now 0.9"):
        run(directory=tmp_path, **{**options, "ema": 0.9})


def test_wrong_values_are_refused_by_name():
    with pytest.raises(ValueError, match="`ema` is the decay"):
        DenseSettings(ema=1.0)
    with pytest.raises(TypeError, match="`schedule` must be a schedule such as"):
        DenseSettings(schedule=0.1)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau needs scores during the run.*score_every"):
        run(schedule=partial(torch_schedules.ReduceLROnPlateau, mode="max"))
    with pytest.raises(ValueError, match=r"total_steps=5.*the run has 6 steps"):
        run(steps=6)
