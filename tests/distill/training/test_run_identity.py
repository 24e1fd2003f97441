"""A run is resumed only with the ingredients that it was started with; a refused run changes no file."""

import functools

import pytest
import torch
from small_runs import Mimic, images, network, run, weights
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from cka_probe.distill.training import student_loop
from cka_probe.distill.training.run_identity import check_processes_agree, extension_refused
from cka_probe.distill.training.schedules import CosineDecay, StepDecay
from cka_probe.distill.training.seen_data import SeenData


def changed(data, sample, place=None):
    """The data with one number of one sample changed, or its label."""
    inputs, target = (tensor.clone() for tensor in data.tensors)
    if place is None:
        target[sample] = (target[sample] + 1) % 3
    else:
        inputs[sample].view(-1)[place] += 1e-4
    return TensorDataset(inputs, target)


def distance(student, teacher, _target):
    return functional.mse_loss(student.logits, teacher.logits)


def half_distance(student, teacher, _target):
    return 0.5 * functional.mse_loss(student.logits, teacher.logits)


def weighted(weight):
    return lambda student, teacher, _target: weight * functional.mse_loss(student.logits, teacher.logits)


class Counting(Mimic):
    """A loss with a state of its own, which the run changes."""

    steps = 0

    def terms(self, *arguments):
        self.steps += 1
        return super().terms(*arguments)


BASE = {
    "student": lambda: network(1),
    "teacher": lambda: network(2),
    "loss": lambda: distance,
    "train": lambda: images(40),
    "test": lambda: images(24, seed=1),
    "optimizer": lambda: functools.partial(torch.optim.SGD, momentum=0.9),
}

# ingredient: (name in the message, other value)
CHANGES = {
    "one pixel": ("`train`", {"train": lambda: changed(images(40), 33, 17)}),
    "one label": ("`train`", {"train": lambda: changed(images(40), 5)}),
    "one test pixel": ("`test`", {"test": lambda: changed(images(24, seed=1), 23, 0)}),
    "one test sample fewer": ("test_samples", {"test": lambda: images(23, seed=1)}),
    "order of the samples": ("`train`", {"train": lambda: TensorDataset(*(t.flip(0) for t in images(40).tensors))}),
    "initial student": ("student_weights", {"student": lambda: network(5)}),
    "teacher": ("teacher_weights", {"teacher": lambda: network(3)}),
    "code of the loss": ("loss", {"loss": lambda: half_distance}),
    "closure of the loss": ("loss", {"loss": lambda: weighted(0.5)}),
    "class of the loss": ("loss", {"loss": Mimic}),
    "option of the optimiser": ("optimizer", {"optimizer": lambda: functools.partial(torch.optim.SGD, momentum=0.8)}),
    "schedule": ("schedule", {"schedule": lambda: StepDecay((1,))}),
    "local schedule": ("schedule", {"schedule": lambda: lambda epoch, _epochs: 1 / (1 + epoch)}),
    "learning rate": ("learning_rate", {"learning_rate": lambda: 0.2}),
    "cross-entropy": ("ce_weight", {"ce_weight": lambda: 0.9}),
    "weight decay": ("weight_decay", {"weight_decay": lambda: 0.0}),
    "batch size": ("batch_size", {"batch_size": lambda: 10}),
    "seed": ("seed", {"seed": lambda: 1}),
    "layers": ("student_layers", {"student_layers": lambda: ["stem"]}),
    "accumulation": ("accumulation", {"accumulation_steps": lambda: 2}),
}


def go(directory, **changes):
    options = {name: make() for name, make in {**BASE, **changes}.items()}
    return run(options.pop("student"), options.pop("teacher"), options.pop("loss"), output_dir=directory, **options)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A directory with a run that was stopped in the middle of its second epoch."""
    directory = tmp_path_factory.mktemp("started")
    steps = []

    def stop(*_):
        steps.append(1)
        if len(steps) > 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_loop, "average_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            go(directory, checkpoint_steps=lambda: 2)
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_ingredient_is_refused_by_name_and_nothing_is_written(started, change):
    name, other = change
    before = contents(started)
    with pytest.raises(ValueError, match=f"{name}.* Use another output_dir, or resume=False"):
        go(started, **other)
    assert contents(started) == before


def test_the_same_ingredients_made_again_are_resumed(started):
    result = go(started)
    assert torch.equal(weights(result.student), weights(go(None).student))
    assert "resumed after epoch 1, step 2" in result.notes[-1]


def test_the_object_that_was_trained_in_this_process_is_resumed(tmp_path, monkeypatch):
    student, loss = network(1), Counting()
    steps = []

    def stop(*_):
        steps.append(1)
        if len(steps) > 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(student_loop, "average_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            run(student, network(2), loss, output_dir=tmp_path)
    result = run(student, network(2), loss, output_dir=tmp_path)
    assert torch.equal(weights(result.student), weights(run(network(1), network(2), Counting()).student))


def test_a_loss_that_cannot_be_identified_runs_but_is_not_resumed(tmp_path):
    class Loss(Mimic):
        def __init__(self):
            super().__init__()
            self.random = (number for number in range(10))

    run(network(1), network(2), Loss(), output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"loss cannot be identified: Loss\(\) holds a builtins.generator"):
        run(network(1), network(2), Loss(), output_dir=tmp_path)


class TestMoreEpochs:
    def test_equal_a_longer_run_where_the_schedule_permits(self, tmp_path):
        constant = {"schedule": StepDecay(milestones=(), warmup=1)}
        run(output_dir=tmp_path, epochs=2, **constant)
        longer = run(output_dir=tmp_path, epochs=4, **constant)
        whole = run(epochs=4, **constant)
        assert torch.equal(weights(longer.student), weights(whole.student))
        assert longer.history["test_accuracy"].tolist() == whole.history["test_accuracy"].tolist()

    def test_are_refused_where_the_finished_epochs_would_have_another_rate(self, tmp_path):
        run(output_dir=tmp_path, epochs=2, schedule=CosineDecay())
        before = contents(tmp_path)
        message = r"a run of 2 epochs, which cannot become one of 4: the schedule of 4 epochs has another learning rate"
        with pytest.raises(ValueError, match=message):
            run(output_dir=tmp_path, epochs=4, schedule=CosineDecay())
        assert contents(tmp_path) == before

    def test_fewer_epochs_than_are_finished(self):
        assert extension_refused(StepDecay(()), 4, 2, 3) == "3 epochs are finished already"
        assert extension_refused(StepDecay(()), 4, 3, 3) is None


def test_processes_with_other_settings_are_told(monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda given: [*given, {**given[0], "loss": "b"}])
    with pytest.raises(ValueError, match="loss is 'a' in process 0 and 'b' in process 1"):
        check_processes_agree({"seed": 0, "loss": "a"})


def test_processes_that_accelerate_does_not_know_of(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match=r"started 2 processes \(WORLD_SIZE\), but accelerate counts 1: .*ACCELERATE_USE_CPU"
    ):
        run(output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_digest_goes_on_where_it_was_saved():
    batches = [(torch.randn(5, 3), torch.arange(5)), (torch.randn(2, 3).bfloat16(), torch.arange(2))]
    whole = SeenData()
    for batch in batches:
        whole.add(batch)
    part = SeenData()
    part.add(batches[0])
    rest = SeenData(part.state())
    rest.add(batches[1])
    assert rest.state() == whole.state()
    assert whole.state()[1] == 7


def test_a_module_that_is_no_student_keeps_no_memory_of_runs():
    # The digests at the start are kept by weak references.
    import gc
    import weakref

    student = nn.Linear(2, 2)
    alive = weakref.ref(student)
    from cka_probe.distill.training.run_identity import weights_at_start

    weights_at_start(student, "nowhere", True)
    del student
    gc.collect()
    assert alive() is None
