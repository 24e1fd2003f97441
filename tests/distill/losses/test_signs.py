"""SignLoss against brute force in float64, over choices of signs (docs/theory.md, T7), and at wrong inputs."""

import numpy as np
import pytest
import torch

from cka_probe.distill import Outputs, RCKALoss, SignLoss, ramp
from cka_probe.distill.losses import LogitCKALoss
from cka_probe.distill.recipes.methods import build_loss


def logits(seed, samples=16, classes=10, dtype=torch.float64):
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(x, y):
    """Loops over the entries of both matrices, without their means over samples and classes."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows, columns = x.shape
    inner = norm_x = norm_y = 0.0
    for i in range(rows):
        for j in range(columns):
            a, b = (z[i, j] - sum(z[:, j]) / rows - sum(z[i]) / columns + z.sum() / z.size for z in (x, y))
            inner, norm_x, norm_y = inner + a * b, norm_x + a * a, norm_y + b * b
    return 1 - inner / np.sqrt(norm_x * norm_y)


@pytest.mark.parametrize("shape", [(2, 2), (5, 3), (3, 7), (16, 10)])
@pytest.mark.parametrize("weight", [1.0, 15.0])
def test_the_value(shape, weight):
    x, y = logits(0, *shape) + 3, 5 * logits(1, *shape)
    terms = SignLoss(weight).terms(x, y)
    assert list(terms) == ["signs"]
    assert float(terms["signs"]) == pytest.approx(weight * by_hand(x, y), abs=1e-12)
    assert float(SignLoss(weight)(x.float(), y.float())) == pytest.approx(weight * by_hand(x, y), abs=weight * 1e-5)


def test_it_tells_apart_the_signs_that_the_logit_terms_do_not():
    z = logits(0)
    z = z - z.mean(0) - z.mean(1, keepdim=True) + z.mean()
    values, axes = torch.linalg.eigh(z.T @ z)
    for signs in ([1] * 10, [1] * 9 + [-1], [-1, 1] * 5, [-1] * 10):
        signs = torch.tensor(signs, dtype=torch.float64)
        student = 2 * z @ (axes * signs) @ axes.T
        assert float(LogitCKALoss()(student, z)) == pytest.approx(0, abs=1e-12)
        expected = 1 - float((signs * values).sum() / values.sum())
        assert float(SignLoss()(student, z)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_scale_and_what_softmax_ignores_do_not_matter(scale):
    x, y = logits(0, dtype=torch.float32), logits(1, dtype=torch.float32)
    expected = SignLoss()(x, y)
    torch.testing.assert_close(SignLoss()(scale * x, y), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(SignLoss()(x, scale * y), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(SignLoss()(x + 10 * logits(2, 16, 1).float(), y), expected, rtol=1e-4, atol=0)


def test_the_gradient():
    x, y = logits(0, 5, 4).requires_grad_(), logits(1, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: SignLoss(2.0)(z, y.detach()), (x,), eps=1e-6, atol=1e-6)
    SignLoss()(x, y).backward()
    assert y.grad is None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = logits(0).to(dtype), logits(1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SignLoss()(x, y)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(by_hand(x.double(), y.double()), abs=1e-5)


def test_gradient_steps_lead_from_wrong_signs_to_the_right_ones():
    """LCKA alone stays where it is: the wrong sign of the largest axis is one of its minima."""
    z = logits(0, 32, 4)
    z = z - z.mean(0) - z.mean(1, keepdim=True) + z.mean()
    axes = torch.linalg.eigh(z.T @ z).eigenvectors
    wrong = z @ (axes * torch.tensor([1.0, 1, 1, -1], dtype=torch.float64)) @ axes.T + 1e-3 * logits(1, 32, 4)
    ends = []
    for loss in (LogitCKALoss(1, 1), LogitCKALoss(1, 1) + SignLoss()):
        student = wrong.clone().requires_grad_()
        optimizer = torch.optim.Adam([student], lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            loss(student, z).backward()
            optimizer.step()
        ends.append(float(SignLoss()(student.detach(), z)))
    assert ends[0] > 0.5
    assert ends[1] < 0.01


def test_weights_ramps_and_recipes():
    x, y = Outputs(logits(0), (logits(2, 16, 6),)), Outputs(logits(1), (logits(3, 16, 6),))
    assert SignLoss(0).terms(x, y) == {}
    assert repr(SignLoss(2)) == "SignLoss(weight=2.0, gather=True)"
    loss = build_loss("rcka+signs", {"rcka": {"intra_weight": 3, "inter_weight": 3}, "signs": {"weight": {"to": 15}}})
    loss.progress = 0.25
    assert float(loss(x, y)) == pytest.approx(
        float(RCKALoss(1, 3, 3)(x, y) + ramp(15)(0.25) * SignLoss()(x, y)), rel=1e-12
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            torch.ones(4, 3),
            logits(0, 4, 3),
            "The student's logits, shape .4, 3., are constant over the batch, so their cosine is not defined",
        ),
        (logits(0, 4, 3), torch.full((4, 3), torch.nan), "The teacher's logits, shape .4, 3., hold NaN or infinity"),
        (logits(0, 4, 1) + torch.zeros(4, 3), logits(0, 4, 3), "The cosine .* nothing but rounding is left of one"),
        (logits(0, 4, 1).float() + 1e4 + torch.zeros(4, 3), logits(0, 4, 3), "The cosine .* nothing but rounding"),
        (logits(0, 1, 3), logits(0, 1, 3), r"at least 2 samples and 2 classes, got logits of shape \(1, 3\)"),
        (logits(0, 4, 1), logits(0, 4, 1), r"at least 2 samples and 2 classes, got logits of shape \(4, 1\)"),
        (logits(0, 4, 3), logits(0, 4, 2), "same classes"),
        (logits(0, 4), None, "SignLoss compares logits"),
    ],
)
def test_input_that_does_not_fit(x, y, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SignLoss()(x, y)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="`weight` must not be negative, got -1"):
        SignLoss(-1)
