"""Sums of losses: value, names, preparation, parameters, resumed runs, and what cannot be added."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cka_probe.distill import RCKALoss, distill, ramp
from cka_probe.distill.baselines import ATLoss, DISTLoss, FitNetLoss, KDLoss
from cka_probe.distill.losses import DistillationLoss, FeatureCKALoss, LogitCKALoss, Outputs, SumOfLosses
from cka_probe.identity import identity


def outputs(seed, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(torch.randn(8, 5, generator=generator), (torch.randn(8, channels, 4, 4, generator=generator),))


BOTH = outputs(0), outputs(1)


def test_the_terms_of_a_sum_are_those_of_its_parts():
    loss = RCKALoss() + 0.5 * KDLoss() + ATLoss() / 4
    expected = {
        **RCKALoss().terms(*BOTH),
        "kd": 0.5 * KDLoss().terms(*BOTH)["kd"],
        "at": 0.25 * ATLoss().terms(*BOTH)["at"],
    }
    torch.testing.assert_close(loss.terms(*BOTH), expected)
    torch.testing.assert_close(loss(*BOTH), sum(expected.values()))
    assert isinstance(loss, DistillationLoss)
    assert loss.reads == ("logits", "features")
    assert (KDLoss() + LogitCKALoss()).reads == ("logits",)
    assert (ATLoss() + FeatureCKALoss()).reads == ("features",)
    torch.testing.assert_close((KDLoss() + DISTLoss())(BOTH[0].logits, BOTH[1].logits), (KDLoss() + DISTLoss())(*BOTH))


@pytest.mark.parametrize(
    "loss",
    [
        sum([LogitCKALoss(), KDLoss(), KDLoss()]),
        LogitCKALoss() + 2 * KDLoss(),
        2 * (0.5 * LogitCKALoss() + KDLoss()),
        KDLoss() * np.float64(2) + LogitCKALoss(),
        np.float64(1) * (LogitCKALoss() + KDLoss()) + 1 * KDLoss(),
        KDLoss() + (KDLoss() + (LogitCKALoss() + 0 * KDLoss())),
    ],
    ids=str,
)
def test_sums_of_any_shape(loss):
    halves = "0.5 * LogitCKALoss" in repr(loss)
    logits = LogitCKALoss()(*BOTH)
    torch.testing.assert_close(loss(*BOTH), logits + 2 * KDLoss()(*BOTH))
    assert len(loss.terms(*BOTH)) == len(set(loss.terms(*BOTH))) >= 3
    assert halves or repr(loss).count("KDLoss") >= 1


def test_names_that_two_parts_have_name_their_loss():
    assert list((RCKALoss() + DISTLoss()).terms(*BOTH)) == ["features", "intra", "inter", "dist_inter", "dist_intra"]
    assert list((KDLoss(1) + KDLoss(2) + KDLoss(3)).terms(*BOTH)) == ["kd", "kd_kd", "kd_kd_2"]


def test_factors_may_be_ramps_and_the_progress_reaches_all_parts():
    loss = RCKALoss(intra_weight=ramp(15, until=0.5)) + ramp(2) * (KDLoss() + ATLoss(ramp(1000)))
    loss.progress = 0.5
    expected = RCKALoss()(*BOTH) + KDLoss()(*BOTH) + ATLoss(500)(*BOTH)
    torch.testing.assert_close(loss(*BOTH), expected)
    assert loss.parts[1].parts[1].progress == 0.5
    assert "ramp(2, until=1, shape='linear') * (KDLoss" in repr(loss)


def test_preparation_reaches_all_parts_and_their_parameters_are_trained():
    student, teacher = outputs(0), outputs(1, channels=6)
    loss = KDLoss() + 0.1 * (FitNetLoss() + FeatureCKALoss())
    loss.prepare(student.features, teacher.features)
    weights = list(loss.parameters())
    assert len(weights) == 2
    loss(student, teacher).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


def test_a_function_may_be_a_part():
    def mine(student, teacher, target):
        return (student.logits - teacher.logits).square().mean()

    for loss in (KDLoss() + mine, mine + KDLoss()):
        terms = loss.terms(*BOTH)
        assert set(terms) == {"kd", "distillation"}
        torch.testing.assert_close(terms["distillation"], mine(*BOTH, None))

    class Mine(nn.Module):
        def forward(self, student, teacher, target=None):
            return mine(student, teacher, target)

    torch.testing.assert_close((0.5 * KDLoss() + Mine())(*BOTH), 0.5 * KDLoss()(*BOTH) + mine(*BOTH, None))


def test_what_cannot_be_added_is_said():
    def four(student_logits, teacher_logits, student_features, teacher_features):
        return student_logits - teacher_logits + student_features - teacher_features

    for other in (3, "kd", None, KDLoss):
        with pytest.raises(
            TypeError, match=r"A loss can be added to a loss, or to a function of \(student, teacher, t"
        ):
            RCKALoss() + other
    with pytest.raises(TypeError, match="Two losses cannot be multiplied"):
        RCKALoss() * KDLoss()
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        -1 * KDLoss()
    with pytest.raises(TypeError, match="a loss takes three"):
        KDLoss() + four


def test_a_sum_is_identified_by_its_factors_and_parts():
    losses = [
        KDLoss() + 0.5 * DISTLoss(),
        KDLoss() + 0.4 * DISTLoss(),
        KDLoss() + ramp(0.5) * DISTLoss(),
        KDLoss() + 0.5 * DISTLoss(temperature=2),
        DISTLoss() + 0.5 * KDLoss(),
    ]
    assert len({identity(loss) for loss in losses}) == len(losses)
    assert identity(KDLoss() + 0.5 * DISTLoss()) == identity(losses[0])


def networks():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return teacher, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_run_with_a_sum_records_all_terms_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    data = TensorDataset(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)

    def run(loss, epochs, folder):
        teacher, student = networks()
        options = {"student_layers": ["1"], "batch_size": 8, "progress": False, "output_dir": folder}
        return distill(teacher, student, data, data, loss, epochs=epochs, **options)

    def make(factor=0.5):
        return RCKALoss(intra_weight=5.0, inter_weight=0) + factor * (KDLoss() + FitNetLoss(1.0))

    whole = run(make(), 3, tmp_path / "whole")
    assert {"features", "intra", "kd", "fitnet"} <= set(whole.history)

    steps = 0

    loss, compute = make(), SumOfLosses.compute_terms

    def stopping(self, *outputs):
        nonlocal steps
        steps += self is loss
        if steps == 8:
            raise InterruptedError
        return compute(self, *outputs)

    with monkeypatch.context() as patch:
        patch.setattr(SumOfLosses, "compute_terms", stopping)
        with pytest.raises(InterruptedError):
            run(loss, 3, tmp_path / "resumed")
    with pytest.raises(ValueError, match="loss was"):
        run(make(0.25), 3, tmp_path / "resumed")
    resumed = run(make(), 3, tmp_path / "resumed")
    for name, weight in whole.student.state_dict().items():
        assert torch.equal(weight, resumed.student.state_dict()[name])
