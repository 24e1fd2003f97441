"""A loss accepts `Outputs` of both networks, or bare tensors; anything else is an error that shows the right form."""

import pytest
import torch
from torch import nn

from cka_probe.distill import Outputs, distill_detector, distill_segmenter
from cka_probe.distill.losses import (
    DistillationLoss,
    FeatureCKALoss,
    HiddenStateCKALoss,
    LogitCKALoss,
    PatchCKALoss,
    RCKALoss,
    SegmentationCKALoss,
)
from cka_probe.distill.losses.contract import check_signature


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LOGITS = normal(6, 5), normal(6, 5, seed=1)
MAPS = normal(6, 4, 3, 3, seed=2), normal(6, 7, 3, 3, seed=3)
BOTH = Outputs(LOGITS[0], (MAPS[0],)), Outputs(LOGITS[1], (MAPS[1],))


def test_bare_tensors_are_what_the_loss_reads():
    assert torch.equal(LogitCKALoss()(*LOGITS), LogitCKALoss()(*BOTH))
    expected = FeatureCKALoss()(*BOTH)
    for student, teacher in (MAPS, ([MAPS[0]], (MAPS[1],)), (BOTH[0], MAPS[1])):
        assert torch.equal(FeatureCKALoss()(student, teacher), expected)
        assert torch.equal(FeatureCKALoss().terms(student, teacher)["features"], expected)


def test_rcka_reads_what_its_weights_need():
    assert RCKALoss().reads == ("logits", "features")
    assert RCKALoss(0, 1, 1).reads == ("logits",)
    assert RCKALoss(1, 0, 0).reads == ("features",)
    assert torch.equal(RCKALoss(0, 2, 3)(*LOGITS), LogitCKALoss(2, 3)(*LOGITS))
    assert torch.equal(RCKALoss(2, 0, 0)(*MAPS), FeatureCKALoss(2)(*MAPS))


@pytest.mark.parametrize("method", ["__call__", "terms"])
@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (RCKALoss(), MAPS, r"logits and features: the student's must be Outputs, got Tensor. Call loss\(Outputs\(st"),
        (RCKALoss(), (BOTH[0], [MAPS[1]]), "logits and features: the teacher's must be Outputs, got list"),
        (RCKALoss(), (*LOGITS, [MAPS[0]], [MAPS[1]]), r"three arguments, .* called with 4. Call loss\(Outputs\(stud"),
        (LogitCKALoss(), (*LOGITS, [], [], None), r"three arguments, .* called with 5. Call loss\(Outputs\(student_"),
        (LogitCKALoss(), ([LOGITS[0]], LOGITS[1]), "student's must be a tensor or Outputs.*got list"),
        (SegmentationCKALoss(), (None, None), "student's must be a tensor or Outputs.*got NoneType"),
        (FeatureCKALoss(), (MAPS[0], None), "teacher's must be a tensor, a list of tensors or Outputs.*got NoneType"),
        (FeatureCKALoss(), (MAPS[0], {"a": MAPS[1]}), "teacher's must be a tensor, a list of tensors or .*got dict"),
        (FeatureCKALoss(), ((LOGITS[0], [MAPS[0]]), MAPS[1]), "student has 2 and the teacher 1"),
        (FeatureCKALoss(), (Outputs(features=MAPS[0]), MAPS[1]), "student's features must be a tuple of tensors"),
        (FeatureCKALoss(), ([MAPS[0], 3], MAPS), "student's feature 1 must be a tensor, got int"),
        (FeatureCKALoss(), (Outputs(LOGITS[0]), Outputs(LOGITS[1])), "compares features, but got none. Pass Outputs"),
        (PatchCKALoss(), ([], []), "PatchCKALoss compares features, but got none"),
        (RCKALoss(), (BOTH[0], Outputs(LOGITS[1])), "the student has 1 and the teacher 0"),
        (RCKALoss(), (BOTH[0], BOTH[1]._replace(logits=None)), "compares logits, but the teacher has none. Pass Outpu"),
        (LogitCKALoss(), (Outputs(), LOGITS[1]), "LogitCKALoss compares logits, but the student has none"),
        (SegmentationCKALoss(), (normal(2, 3, 4, 4), Outputs()), "compares logits, but the teacher has none"),
    ],
)
def test_input_of_the_wrong_kind(method, loss, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(loss, method)(*given)


def test_a_loss_of_ones_own_says_what_it_reads():
    class Distance(DistillationLoss):
        reads = ("features",)

        def compute_terms(self, student, teacher, target):
            x, y = student.features[0], teacher.features[0]
            return {"distance": (x @ x.mT - y @ y.mT).square().mean(), "target": target.sum()}

    with torch.autocast("cpu", torch.bfloat16):
        value = Distance()(normal(4, 3).float(), normal(4, 5).float(), torch.ones(4))
    assert value.dtype == torch.float32
    with pytest.raises(NotImplementedError, match="DistillationLoss does not define `compute_terms`"):
        DistillationLoss()(*BOTH)


def test_outputs_in_float32_keep_the_mask():
    mask = torch.ones(6, 3, dtype=torch.bool)
    outputs = Outputs(LOGITS[0].half(), (MAPS[0], MAPS[1].bfloat16()), mask).in_float32()
    assert [x.dtype for x in (outputs.logits, *outputs.features)] == [torch.float32] * 3
    assert outputs.mask is mask
    assert Outputs().in_float32() == Outputs()


class Former(nn.Module):
    def forward(self, student_logits, teacher_logits, student_features=(), teacher_features=(), target=None):
        return 0


class FormerTerms(nn.Module):
    def terms(self, a, b, c, d, target=None):
        return {}


@pytest.mark.parametrize("train", [distill_detector, distill_segmenter])
def test_dense_runs_refuse_losses_of_five_arguments(train):
    with pytest.raises(TypeError, match="a loss takes three"):
        train(nn.Identity(), nn.Identity(), [], loss=Former())


class New(nn.Module):
    def forward(self, student, teacher, target=None, *, weight=1.0):
        return 0


@pytest.mark.parametrize("loss", [Former(), FormerTerms(), Former().forward], ids=["forward", "terms", "function"])
def test_losses_of_five_arguments_are_refused(loss):
    with pytest.raises(TypeError, match=r"a loss takes three: \(student, teacher, target=None\). .* Outputs: read"):
        check_signature(loss)


@pytest.mark.parametrize("loss", [New(), RCKALoss(), nn.Identity(), print, max], ids=str)
def test_losses_of_three_arguments_are_accepted(loss):
    check_signature(loss)


class OwnTerms(DistillationLoss):
    """A subclass that defines `terms` itself, in the form of the contract."""

    reads = ("logits",)

    def terms(self, student, teacher, target=None):
        return {"own": (student.logits @ student.logits.T - teacher.logits @ teacher.logits.T).square().mean()}


def test_a_subclass_may_define_terms_itself():
    assert torch.equal(OwnTerms()(*LOGITS), OwnTerms()(*BOTH))
    with torch.autocast("cpu", torch.bfloat16):
        assert OwnTerms()(LOGITS[0].float(), LOGITS[1].float()).dtype == torch.float32
    with pytest.raises(TypeError, match="takes three arguments"):
        OwnTerms()(*LOGITS, [], [], None)


@pytest.mark.parametrize("loss", [FeatureCKALoss(), HiddenStateCKALoss()], ids=["features", "hidden states"])
@pytest.mark.parametrize(
    ("student", "error", "message"),
    [
        (Outputs(features=normal(2, 4, 3)), TypeError, "The student's features must be a tuple of tensors"),
        (Outputs(features=None), ValueError, "the student has 0"),
        (
            Outputs(features=(normal(2, 4, 3),), mask=[[1, 1, 0, 0]]),
            TypeError,
            r"mask must be a tensor of shape \(B, T\)",
        ),
        (Outputs(features=[None]), TypeError, "must be a tensor, got NoneType"),
    ],
)
def test_wrong_parts_of_outputs_are_named(loss, student, error, message):
    with pytest.raises(error, match=message):
        loss(student, Outputs(features=(normal(2, 4, 5),)))
