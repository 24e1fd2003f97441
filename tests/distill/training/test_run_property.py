"""Change one ingredient of a stopped run at random and resume: refused by its name, and no file changes."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import images, network, run, weights
from torch.nn import functional
from torch.utils.data import TensorDataset

from cka_probe.distill.dense import SmallResNet, distill_segmenter, loop, segmenter
from cka_probe.distill.training import student_loop
from cka_probe.distill.training.diagnostics import Diagnostics
from cka_probe.distill.training.schedules import CosineDecay, StepDecay

SCALE = 1.0
PLACES = st.integers(0, 10**6)
FACTORS = st.floats(0.1, 3).filter(lambda factor: abs(factor - 1) > 1e-3)


def loss(student, teacher, _target, weight=1.0):
    return SCALE * weight * functional.mse_loss(student.logits, teacher.logits)


def with_default(weight):
    def loss(student, teacher, _target, weight=weight):
        return SCALE * weight * functional.mse_loss(student.logits, teacher.logits)

    return loss


def with_closure(weight):
    return lambda student, teacher, _target: weight * functional.mse_loss(student.logits, teacher.logits)


def with_global(value):
    code = "def loss(student, teacher, target):\n    return SCALE * F.mse_loss(student.logits, teacher.logits)"
    names = {"SCALE": value, "F": functional, "__name__": "__main__"}
    exec(code, names)  # a function whose module has another value
    return names["loss"]


class Distance:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, student, teacher, _target):
        return self.weight * functional.mse_loss(student.logits, teacher.logits)


def pixel(data, place):
    inputs, target = (tensor.clone() for tensor in data.tensors)
    inputs.view(-1)[place % inputs.numel()] += 1e-3
    return TensorDataset(inputs, target)


def label(data, place):
    inputs, target = (tensor.clone() for tensor in data.tensors)
    target[place % len(target)] = (target[place % len(target)] + 1) % 3
    return TensorDataset(inputs, target)


def order(data, place):
    inputs, target = data.tensors
    first = place % (len(target) - 1)
    swapped = torch.arange(len(target))
    swapped[[first, first + 1]] = swapped[[first + 1, first]]
    return TensorDataset(inputs[swapped], target[swapped])


def shorter(data, place):
    return TensorDataset(*(tensor[: -1 - place % 3] for tensor in data.tensors))


def moved(model, place):
    with torch.no_grad():
        tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        flat = tensors[place % len(tensors)].view(-1)
        flat[place % len(flat)] += 1e-3
    return model


def frozen_stem(model):
    model.stem.requires_grad_(False)
    return model


def sgd(**options):
    return functools.partial(torch.optim.SGD, **options)


BASE = {
    "student": lambda: network(1),
    "teacher": lambda: network(2),
    "loss": lambda: loss,
    "train": lambda: images(40),
    "test": lambda: images(24, seed=1),
    "optimizer": lambda: sgd(momentum=0.9),
    "schedule": CosineDecay,
}


def change(key, name, *arguments):
    """A strategy of (argument, its value, name in the message)."""
    return st.builds(lambda value: (key, value, name), *arguments)


def of(make, strategy=PLACES):
    return st.builds(lambda drawn: functools.partial(make, drawn), strategy)


CHANGES = st.one_of(
    *[
        change(data, f"`{data}` gives other samples", of(lambda place, edit=edit, data=data: edit(BASE[data](), place)))
        for data in ("train", "test")
        for edit in (pixel, label, order)
    ],
    *[
        change(data, f"{data}_samples", of(lambda place, data=data: shorter(BASE[data](), place)))
        for data in ("train", "test")
    ],
    *[
        change(model, f"{model}_weights", of(lambda place, model=model: moved(BASE[model](), place)))
        for model in ("student", "teacher")
    ],
    change("student", "student was", of(lambda p: network(1, dropout=p), st.floats(0.1, 0.9))),
    change("student", "student was", st.just(lambda: frozen_stem(network(1)))),
    *[
        change("loss", "loss was", of(make, FACTORS))
        for make in (
            lambda w: with_default(w),
            lambda w: with_closure(w),
            lambda w: with_global(w),
            lambda w: Distance(w),
        )
    ],
    change("schedule", "schedule", of(lambda f: StepDecay(factor=f), FACTORS)),
    change("schedule", "schedule", of(lambda f: CosineDecay(final=f), st.floats(0.1, 0.9))),
    change("optimizer", "optimizer", of(lambda m: sgd(momentum=m), st.floats(0, 0.8))),
    change("optimizer", "optimizer", st.just(lambda: sgd(momentum=0.9, nesterov=True))),
    change("learning_rate", "learning_rate", of(lambda f: 0.1 * f, FACTORS)),
    change("ce_weight", "ce_weight", of(lambda f: f, FACTORS)),
    change("weight_decay", "weight_decay", of(lambda f: 5e-4 * f, FACTORS)),
    change("batch_size", "batch_size", of(lambda n: n, st.integers(9, 30))),
    change("seed", "seed", of(lambda n: n, st.integers(1, 10**6))),
    change("accumulation_steps", "accumulation", of(lambda n: n, st.integers(2, 4))),
    change("accumulation", "accumulation", st.just(lambda: "mean")),
    change("mixed_precision", "mixed_precision", st.just(lambda: "bf16")),
    change("student_layers", "student_layers", of(lambda name: [name], st.sampled_from(["stem", "norm", "act"]))),
    change("diagnostics", "diagnostics", of(lambda n: Diagnostics(samples=n), st.integers(8, 24))),
    change("epochs", "cannot become one of", of(lambda n: n, st.integers(3, 50))),
)


def go(directory, **changes):
    options = {name: make() for name, make in {**BASE, **changes}.items()}
    return run(options.pop("student"), options.pop("teacher"), options.pop("loss"), output_dir=directory, **options)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stopped(module, after, job):
    """Run the job, which is stopped by Ctrl-C after some steps."""
    steps = iter(range(10**6))

    def stop(*_):
        if next(steps) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "average_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            job()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    directory = tmp_path_factory.mktemp("started")
    stopped(student_loop, 8, lambda: go(directory, checkpoint_steps=lambda: 2))
    return directory


@settings(max_examples=120)
@given(changed=CHANGES)
def test_a_distillation_with_one_other_ingredient_is_refused_by_its_name(started, changed):
    key, make, name = changed
    before = contents(started)
    with pytest.raises(ValueError, match=f"{name}.*Use another output_dir, or resume=False"):
        go(started, **{key: make})
    assert contents(started) == before


def test_without_a_change_it_resumes_to_the_same_bits(tmp_path):
    stopped(student_loop, 8, lambda: go(tmp_path, checkpoint_steps=lambda: 2))
    result, whole = go(tmp_path), go(None)
    assert torch.equal(weights(result.student), weights(whole.student))
    assert result.history["train_loss"].tolist() == whole.history["train_loss"].tolist()


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count, 32, 32), generator=generator)
    return TensorDataset(torch.randn(count, 3, 32, 32, generator=generator), labels)


def small_segmenter(seed):
    torch.manual_seed(seed)
    return segmenter("lraspp", SmallResNet(4), 3)


DENSE = {"student": lambda: small_segmenter(0), "train": lambda: pictures(6, 0), "test": lambda: pictures(4, 1)}

DENSE_CHANGES = st.one_of(
    *[
        change(data, f"`{data}` gives other samples", of(lambda place, data=data: pixel(DENSE[data](), place)))
        for data in ("train", "test")
    ],
    *[
        change(data, f"{data}_samples", of(lambda place, data=data: shorter(DENSE[data](), place)))
        for data in ("train", "test")
    ],
    change("student", "student_weights", of(lambda place: moved(small_segmenter(0), place))),
    change("learning_rate", "learning_rate", of(lambda f: 0.01 * f, FACTORS)),
    change("weight_decay", "weight_decay", of(lambda f: 5e-4 * f, FACTORS)),
    change("clip_norm", "clip_norm", of(lambda f: f, FACTORS)),
    change("optimizer", "optimizer", of(lambda m: sgd(momentum=m), st.floats(0, 0.8))),
    change("seed", "seed", of(lambda n: n, st.integers(1, 99))),
    change("batch_size", "batch_size", of(lambda n: n, st.integers(3, 6))),
    change("log_every", "log_every", of(lambda n: n, st.integers(2, 9))),
    change("score_every", "score_every", of(lambda n: n, st.integers(3, 9))),
    change("steps", "cannot become one of", of(lambda n: n, st.integers(30, 99))),
)


def go_dense(directory, **changes):
    options = {name: make() for name, make in {**DENSE, **changes}.items()}
    options = {"steps": 6, "batch_size": 2, "log_every": 1, "score_every": 2, "progress": False, **options}
    return distill_segmenter(None, options.pop("student"), output_dir=directory, checkpoint_steps=1, **options)


@pytest.fixture(scope="module")
def started_dense(tmp_path_factory):
    directory = tmp_path_factory.mktemp("started")
    stopped(loop, 4, lambda: go_dense(directory))
    return directory


@settings(max_examples=40)
@given(changed=DENSE_CHANGES)
def test_a_dense_run_with_one_other_ingredient_is_refused_by_its_name(started_dense, changed):
    key, make, name = changed
    before = contents(started_dense)
    with pytest.raises(ValueError, match=f"{name}.*Use another output_dir, or resume=False"):
        go_dense(started_dense, **{key: make})
    assert contents(started_dense) == before
