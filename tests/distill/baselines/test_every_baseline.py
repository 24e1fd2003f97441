"""What all baselines share: gradient, precision, scale, text, and errors for settings and input that do not fit."""

import math

import pytest
import torch
from baselines_by_hand import F64, LOGITS, MAPS, TARGET, normal

from cka_probe.distill.baselines import (
    ATLoss,
    CCLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    FitNetLoss,
    KDLoss,
    PKDLoss,
    RKDLoss,
    SPLoss,
)
from cka_probe.distill.losses.contract import Outputs

ALL = [
    KDLoss(),
    DKDLoss(),
    DISTLoss(),
    SPLoss(),
    RKDLoss(),
    CCLoss(),
    FitNetLoss(),
    ATLoss(),
    PKDLoss(),
    CWDLoss(),
]


BY_NAME = pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)


def evaluate(loss, logits=LOGITS, maps=MAPS, target=TARGET):
    if hasattr(loss, "prepare"):
        torch.manual_seed(0)
        loss.prepare([maps[0]], [maps[1]])
        loss.to(maps[0].dtype if maps[0].dtype == F64 else torch.float32)
    return loss(Outputs(logits[0], (maps[0],)), Outputs(logits[1], (maps[1],)), target)


@BY_NAME
def test_the_gradient(loss):
    logits = LOGITS[0][:4].clone().requires_grad_()
    maps = MAPS[0][:, :2, :2, :2].clone().requires_grad_()

    def value(logits, maps):
        return evaluate(loss, (logits, LOGITS[1][:4]), (maps, MAPS[1][:, :2, :2, :2]), TARGET[:4])

    assert torch.autograd.gradcheck(value, (logits, maps), eps=1e-6, atol=1e-5, rtol=1e-4)


@BY_NAME
def test_the_teacher_gets_no_gradient_and_the_value_is_a_sum_of_terms(loss):
    student = (LOGITS[0].clone().requires_grad_(), MAPS[0].clone().requires_grad_())
    teacher = (LOGITS[1].clone().requires_grad_(), MAPS[1].clone().requires_grad_())
    value = evaluate(loss, (student[0], teacher[0]), (student[1], teacher[1]))
    assert value.shape == ()
    value.backward()
    assert all(tensor.grad is None for tensor in teacher)
    assert any(tensor.grad is not None for tensor in student)
    terms = loss.terms(Outputs(LOGITS[0], (MAPS[0],)), Outputs(LOGITS[1], (MAPS[1],)), TARGET)
    assert sum(float(term.detach()) for term in terms.values()) == pytest.approx(float(value.detach()))


@BY_NAME
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    logits, maps = [[z.to(dtype) for z in pair] for pair in (LOGITS, MAPS)]
    exact = evaluate(loss, [z.double() for z in logits], [z.double() for z in maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = evaluate(loss, logits, maps)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=1e-4)


@BY_NAME
def test_the_text_names_the_settings(loss):
    assert any(f"{name}=" in repr(loss) for name in ("weight", "alpha", "beta", "distance_weight"))


@pytest.mark.parametrize("loss", [SPLoss(), CCLoss(), ATLoss(), PKDLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_scale_of_the_student_does_not_matter(loss, scale):
    small = [normal(4, 3, 5, 5, dtype=torch.float32)], [normal(4, 3, 5, 5, seed=1, dtype=torch.float32)]
    expected = loss(*small)
    torch.testing.assert_close(loss([scale * small[0][0]], small[1]), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [FitNetLoss(), ATLoss(), CWDLoss()], ids=lambda loss: type(loss).__name__)
def test_maps_of_other_size_and_channels(loss):
    x, y = normal(2, 3, 8, 6, dtype=torch.float32), normal(2, 5, 4, 7, dtype=torch.float32)
    value = evaluate(loss, maps=(x, y))
    assert bool(torch.isfinite(value))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KDLoss(0), "`temperature` must be positive, got 0"),
        (lambda: KDLoss(weight=-1), "`weight` must not be negative, got -1"),
        (lambda: DKDLoss(alpha=-1), "`alpha` must not be negative"),
        (lambda: DISTLoss(gamma=math.nan), "`gamma` must not be negative, got nan"),
        (lambda: RKDLoss(angle_weight=-1), "`angle_weight` must not be negative"),
        (lambda: CCLoss(gamma=0), "`gamma` must be positive"),
        (lambda: CCLoss(order=0), "`order` must be a whole number of at least 1"),
        (lambda: ATLoss(power=0), "`power` must be positive"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        (DKDLoss(), LOGITS, ValueError, "DKDLoss needs the class labels"),
        (DKDLoss(), (LOGITS[0][:, :2], LOGITS[1][:, :2], TARGET % 2), ValueError, "needs 3 classes, got 2"),
        (SPLoss(), ([], []), ValueError, "SPLoss compares features, but got none"),
        (ATLoss(), ([normal(3, 4)], [normal(3, 4)]), ValueError, "ATLoss compares maps, but the student"),
        (CWDLoss(), ([MAPS[0]], [normal(3, 4)]), ValueError, "CWDLoss compares maps, but the teacher"),
        (PKDLoss(), ([MAPS[0]], [MAPS[1][:, :2]]), ValueError, r"\(3, 4, 5, 6\) in the student"),
        (
            CWDLoss(),
            ([MAPS[0]], [MAPS[1][:, :2]]),
            RuntimeError,
            "no adapter for feature 0: call loss.prep",
        ),
        (FitNetLoss(), ([MAPS[0]], [MAPS[1]]), RuntimeError, "no adapter for feature 0: call loss.prepare"),
    ],
)
def test_input_that_does_not_fit(loss, arguments, error, message):
    with pytest.raises(error, match=message):
        loss(*arguments)
