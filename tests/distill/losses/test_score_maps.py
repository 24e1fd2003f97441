"""CKA of class-score maps: the definition, the released formula, sizes, precision, and bad input."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from maps_by_hand import cka, normal, smooth

from cka_probe.distill.dense import SegmentationCKALoss

F64 = torch.float64


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_score_maps_by_pixel(estimator):
    x, y = smooth(2, 5, 6, 7), smooth(2, 5, 6, 7, seed=10)
    rows = [np.array([z[b, :, i, j].numpy() for b in range(2) for i in range(6) for j in range(7)]) for z in (x, y)]
    pixels = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    classes = [r.T / np.linalg.norm(r.T, axis=1, keepdims=True) for r in rows]
    terms = SegmentationCKALoss(10, 4, estimator=estimator).terms(x, y)
    assert float(terms["intra"]) == pytest.approx(10 * (1 - reference.cka(*pixels, estimator)), abs=1e-10)
    assert float(terms["inter"]) == pytest.approx(4 * (1 - reference.cka(*classes, estimator)), abs=1e-10)


def test_score_maps_by_sample():
    x, y = smooth(5, 3, 4, 4), smooth(5, 3, 4, 4, seed=10)
    terms = SegmentationCKALoss(10, 4, relation="sample").terms(x, y)
    a, b = x.flatten(1), y.flatten(1)
    assert float(terms["intra"]) == pytest.approx(10 * (1 - float(cka(unit(a), unit(b)))), abs=1e-10)
    assert float(terms["inter"]) == pytest.approx(4 * (1 - float(cka(unit(a.T), unit(b.T)))), abs=1e-10)


@pytest.mark.parametrize("inter", [0, 3])
def test_released_score_maps(inter):
    """Only rows are divided by the root of the diagonal; inter has the intra weight."""

    def scaled(x, y):
        grams = [z @ z.T for z in (x, y)]
        a, b = (gram / torch.sqrt(torch.diag(gram))[:, None] for gram in grams)
        return torch.trace(a @ b.T) / torch.sqrt(torch.trace(a @ a.T) * torch.trace(b @ b.T))

    x, y = smooth(3, 4, 5, 6).requires_grad_(), smooth(3, 4, 5, 6, seed=10)
    expected = -10 * scaled(x.flatten(1), y.flatten(1))
    if inter:
        expected = expected - 10 * scaled(x.flatten(1).T, y.flatten(1).T)
    (expected_gradient,) = torch.autograd.grad(expected, x)
    value = SegmentationCKALoss(10, inter, variant="released")(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)


def test_score_maps_of_city_size_need_no_gram_over_pixels():
    """Their Gram matrix over scores, (P H W)^2, would have 1.6e9 entries."""
    x, y = smooth(2, 5, 64, 128, dtype=torch.float32), smooth(2, 5, 64, 128, seed=10, dtype=torch.float32)
    for loss in (SegmentationCKALoss(), SegmentationCKALoss(variant="released")):
        assert bool(torch.isfinite(loss(x, y)))


def test_score_maps_of_other_size_one_image_and_half_precision():
    x, y = smooth(1, 5, 16, 16), smooth(1, 5, 8, 8, seed=10)
    value = SegmentationCKALoss()(x, y)
    resized = F.interpolate(y, (16, 16), mode="bilinear")
    torch.testing.assert_close(value, SegmentationCKALoss()(x, resized))
    half = SegmentationCKALoss()(x.half(), y.half())
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(value), abs=1e-3)


def test_gradcheck_of_score_maps():
    x, y = smooth(1, 4, 3, 4).requires_grad_(), smooth(1, 4, 3, 4, seed=10)
    assert torch.autograd.gradcheck(lambda z: SegmentationCKALoss()(z, y), x, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, smooth(2, 3, 4, 4)), TypeError, "compares logits: the student's must be a tensor"),
        ((smooth(2, 3, 4, 4), normal(2, 3)), ValueError, r"The teacher's class scores must have shape \(B, P, H, W\)"),
        ((smooth(2, 3, 4, 4), smooth(2, 4, 4, 4)), ValueError, "The student scores 3 classes and the teacher 4"),
        ((smooth(2, 3, 4, 4), torch.ones(2, 3, 4, 4, dtype=F64)), ValueError, "The teacher's score maps, .* constant"),
        ((smooth(2, 2, 4, 4), smooth(2, 2, 4, 4, seed=1)), ValueError, "needs at least 3 .* Set inter_weight=0"),
    ],
)
def test_score_maps_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        SegmentationCKALoss()(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relation": "patch"}, '`relation` must be "pixel" or "sample"'),
        ({"variant": "released", "relation": "pixel"}, 'The released code has relation="sample"'),
        ({"variant": "x"}, "`variant` must be"),
        ({"inter_weight": -1}, "`inter_weight` must not be negative"),
    ],
)
def test_score_map_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        SegmentationCKALoss(**settings)
