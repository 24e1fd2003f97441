"""distill(): the loop, restored states, errors for wrong input, and weights that the seed decides."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from small_runs import ConvNet, Mimic, Noisy, cpu_accelerator, images, network, run, weights
from torch import nn
from torch.utils.data import DataLoader

from cka_probe.distill.models import load_weights
from cka_probe.distill.training.batches import DatasetBatches
from cka_probe.distill.training.schedules import StepDecay


def test_plain_training_equals_a_loop_written_out_by_hand():
    student = network(1)
    reference = copy.deepcopy(student)
    result = run(student, epochs=3, schedule=StepDecay((1, 2), 0.5), weight_decay=0.01, train=images(16), batch_size=16)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    x, y = images(16).tensors
    losses = []
    for epoch in range(3):  # one batch in each epoch: the order of the samples has no effect
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5**epoch
        loss = F.cross_entropy(reference(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(weights(student), weights(reference), atol=2e-6)
    np.testing.assert_allclose(result.history["train_loss"], losses, atol=1e-6)
    np.testing.assert_allclose(result.history["lr"], [0.1, 0.05, 0.025])
    reference.eval()
    xt, yt = images(24, seed=1).tensors
    assert result.last_accuracy == pytest.approx((reference(xt).argmax(1) == yt).double().mean().item())


def test_history_has_the_terms_and_their_sum():
    result = run(teacher=network(2), loss=Mimic(), student_layers=["norm"], ce_weight=0.5)
    history = result.history
    assert history.columns.tolist() == [
        *["epoch", "train_loss", "cross_entropy", "logits", "features"],
        *["train_accuracy", "test_accuracy", "lr", "seconds"],
    ]
    np.testing.assert_allclose(history["train_loss"], history[["cross_entropy", "logits", "features"]].sum(axis=1))
    assert history["epoch"].tolist() == [1, 2]
    assert result.best_accuracy == history["test_accuracy"].max()
    assert "2 epochs" in repr(result)
    assert ": 1 epoch," in repr(replace(result, history=result.history[:1]))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_same_seed_same_weights_with_any_number_of_workers():
    options = {"teacher": network(2), "loss": Mimic(), "student_layers": ["norm"]}
    torch.manual_seed(5)
    first = run(network(1, dropout=0.3), **options, train=Noisy(images()))
    torch.manual_seed(6)
    second = run(network(1, dropout=0.3), **options, train=Noisy(images()), workers=1)
    third = run(network(1, dropout=0.3), **options, train=Noisy(images()), seed=1)
    assert torch.equal(weights(first.student), weights(second.student))
    assert not torch.equal(weights(first.student), weights(third.student))


def test_augmentation_differs_between_epochs_and_samples():
    seen = []

    class Recorded(Noisy):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            seen.append((index, (x - self.data[index][0]).flatten()[0].item()))
            return x, y

    run(train=Recorded(images(16)), epochs=2)
    assert len({noise for _, noise in seen[16:]}) == 32  # the first 16 are the sample for the checks before the run
    assert sorted(index for index, _ in seen[16:32]) == list(range(16))


def test_teacher_is_frozen_and_restored():
    teacher = network(2)
    teacher.train()
    teacher.stem.weight.requires_grad_(False)
    teacher.norm.eval()
    before = copy.deepcopy(teacher.state_dict())
    run(teacher=teacher, loss=Mimic(), student_layers=["norm"])
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert not teacher.norm.training
    assert not teacher.stem.weight.requires_grad
    assert teacher.fc.weight.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())


class Stop(Mimic):
    def __init__(self, error, after):
        super().__init__()
        self.error, self.left = error, after

    def terms(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().terms(*arguments)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_everything_is_restored_after_an_exception(error):
    teacher, student = network(2), network(1)
    student.norm.eval()
    torch.manual_seed(11)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(type(error)):
        run(student, teacher, Stop(error, 3), student_layers=["norm"])
    for model in (teacher, student):
        assert all(not module._forward_hooks for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.training
    assert not student.norm.training
    assert torch.equal(state, torch.get_rng_state())
    assert (np_state == np.random.get_state()[1]).all()  # noqa: NPY002


def test_best_and_last_are_saved(tmp_path):
    student = network(1)
    result = run(student, epochs=4, output_dir=tmp_path / "run", learning_rate=0.5)
    again = network(9)
    load_weights(again, result.last_path)
    assert torch.equal(weights(again), weights(student))
    load_weights(again, result.best_path)
    assert all(torch.equal(value, result.best_state[name]) for name, value in again.state_dict().items())
    frame = pd.read_csv(tmp_path / "run" / "history.csv")
    np.testing.assert_allclose(frame["train_loss"], result.history["train_loss"])
    assert not list((tmp_path / "run").glob(".*"))


def test_loaders_dicts_and_small_last_batches():
    x, y = images(41).tensors
    rows = [{"x": x[i], "labels": y[i]} for i in range(len(y))]

    class Keyword(ConvNet):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    loader = DataLoader(rows, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="under 4 samples"):
        result = run(Keyword(), train=loader, test=DataLoader(rows, batch_size=8), batch_size=None)
    assert "under 4 samples" in result.notes[0]
    run(train=images(41))  # the last sample is joined to the batch before it


def test_loss_with_its_own_parameters_is_prepared_and_trained():
    class Adapter(nn.Module):
        def prepare(self, student_features, teacher_features):
            self.linear = nn.Linear(student_features[0].shape[1], teacher_features[0].shape[1])
            self.before = self.linear.weight.detach().clone()

        def forward(self, student, teacher, target=None):
            return F.mse_loss(self.linear(student.features[0].mean((2, 3))), teacher.features[0].mean((2, 3)))

    loss = Adapter()
    result = run(teacher=network(2, width=6), loss=loss, student_layers=["norm"])
    assert "distillation" in result.history
    assert not torch.equal(loss.before, loss.linear.weight)


def test_mixed_precision_and_a_second_run_with_another():
    for precision in ("bf16", "no"):
        result = run(teacher=network(2), loss=Mimic(), student_layers=["norm"], mixed_precision=precision)
        assert np.isfinite(result.history["train_loss"]).all()
        assert next(result.student.parameters()).dtype == torch.float32


def test_an_accelerator_of_ones_own_decides():
    with cpu_accelerator(mixed_precision="bf16") as accelerator:
        run(network(1), network(2), Mimic(), accelerator=accelerator, epochs=1)
        with pytest.raises(ValueError, match="but the accelerator that you pass has 'bf16'"):
            run(accelerator=accelerator, mixed_precision="fp16")
        with pytest.raises(ValueError, match=r"already has an Accelerator with 'bf16'.*Pass that one"):
            run()


def five_arguments(student_logits, teacher_logits, student_features, teacher_features, target=None):
    return 0


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"student_layers": ["nrm"]}, ValueError, "`student_layers`: ConvNet has no layer 'nrm'. Did you mean 'norm'"),
        ({"teacher_layers": ["steem"], "student_layers": ["stem"]}, ValueError, "`teacher_layers`: ConvNet .*'stem'"),
        ({"student_layers": "norm"}, TypeError, "sequence of layer paths"),
        ({"student_layers": ["norm"], "teacher_layers": []}, ValueError, "pair by pair, got 1 and 0"),
        ({"teacher": ConvNet(classes=5)}, ValueError, "teacher has 5 classes and the student 3"),
        ({"train": images(40, classes=4)}, ValueError, "label 3, but the student has 3 classes"),
        ({"batch_size": 1}, ValueError, "batch_size must be at least 4, got 1"),
        ({"train": images(3)}, ValueError, "train has 3 samples; 4 are needed"),
        ({"train": DataLoader(images(), 1), "batch_size": None}, ValueError, "Every batch .* under 4 samples"),
        ({"train": DataLoader(images(), 8)}, ValueError, "belong to data sets"),
        ({"train": [1, 2, 3, 4]}, TypeError, "pairs or dicts"),
        ({"train": iter([])}, TypeError, "must be a data set"),
        ({"teacher": None}, ValueError, "teacher is None"),
        ({"loss": None, "ce_weight": 0}, ValueError, "nothing to minimise"),
        ({"loss": 3}, TypeError, "`loss` must be a module"),
        ({"loss": five_arguments}, TypeError, r"a loss takes three: \(student, teacher, target=None\)"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be positive"),
        ({"accumulation_steps": 0}, ValueError, "accumulation_steps"),
        ({"accumulation": "sum"}, ValueError, '"exact" or "mean"'),
        ({"mixed_precision": "fp4"}, ValueError, "`mixed_precision` must be"),
        ({"teacher": "resnet"}, TypeError, "`teacher` must be a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:Batches of the train loader")
def test_bad_input(changes, kind, message):
    options = {"teacher": network(2), "loss": Mimic(), **changes}
    with pytest.raises(kind, match=message):
        run(**options)


def test_shares_of_several_processes_are_disjoint_and_equal():
    shares = []
    for rank in range(2):
        process = SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"))
        batches = DatasetBatches(images(41), batch_size=8, seed=0, workers=0, accelerator=process)
        shares.append([batch.indices.tolist() for batch in batches.of_epoch(0)])
        assert batches.notes == ("1 samples of each epoch are left out: 41 over 2 processes.",)
    assert [len(share) for share in shares[0]] == [len(share) for share in shares[1]] == [4] * 5
    assert len({index for share in shares for batch in share for index in batch}) == 40
    with pytest.raises(ValueError, match="multiple of their number: got 7 for 2 processes"):
        DatasetBatches(images(), batch_size=7, seed=0, workers=0, accelerator=process)


def test_shared_parameters_and_divergence():
    student = network(1)
    with pytest.raises(ValueError, match="share parameters"):
        run(student, student, Mimic())
    with pytest.raises(FloatingPointError, match="training loss is nan in epoch 1"):
        run(learning_rate=1e30, train=images(80))


def test_layers_are_matched_only_for_a_loss_that_needs_features(tmp_path):
    import json

    class Needy(Mimic):
        def terms(self, *arguments):
            if not arguments[0].features:
                raise ValueError("no features")
            return super().terms(*arguments)

    run(network(1), network(2), Needy(), output_dir=tmp_path / "needy", epochs=1)
    run(network(1), network(2), Mimic(), output_dir=tmp_path / "logits", epochs=1)
    layers = [
        json.loads((tmp_path / name / "settings.json").read_text())["student_layers"] for name in ("needy", "logits")
    ]
    assert layers == [["stem"], []]


def test_every_parameter_group_keeps_its_own_learning_rate():
    made = []

    def grouped(parameters, lr, weight_decay):
        first, *rest = parameters
        groups = [{"params": [first], "lr": 0.1 * lr}, {"params": rest}]
        made.append(torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay))
        return made[-1]

    result = run(epochs=4, learning_rate=0.05, optimizer=grouped, schedule=StepDecay((2,)))
    assert result.history["lr"].tolist() == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx([0.0005, 0.005])
