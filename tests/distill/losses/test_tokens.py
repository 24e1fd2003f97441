"""No loss of features sees padding: other paddings of the same sentences, left and right, against brute force."""

import numpy as np
import pytest
import reference
import torch

from cka_probe.distill.baselines import CCLoss, FitNetLoss, RKDLoss, SPLoss
from cka_probe.distill.losses import FeatureCKALoss, HiddenStateCKALoss, Outputs, RCKALoss
from cka_probe.distill.losses.tokens import cka_of_tokens

LENGTHS = (3, 5, 1, 4, 2, 5)


def sentences(width, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator, dtype=torch.float64) for length in LENGTHS]


def padded(rows, side, extra, garbage=float("nan")):
    """A batch of sentences (B, T, d) with ``extra`` more positions than the longest needs, and its mask."""
    tokens = max(LENGTHS) + extra
    batch, mask = torch.full((len(rows), tokens, rows[0].shape[1]), garbage, dtype=torch.float64), []
    for one, row in zip(batch, rows, strict=True):
        places = slice(0, len(row)) if side == "right" else slice(tokens - len(row), tokens)
        one[places] = row
        mask.append([places.start <= t < places.stop for t in range(tokens)])
    return batch, torch.tensor(mask)


def sides(side="right", extra=0, garbage=float("nan"), kind=torch.bool):
    found = []
    for width, seed in ((4, 0), (6, 1)):
        batch, mask = padded(sentences(width, seed), side, extra, garbage)
        found.append(Outputs(torch.ones(6, 3, dtype=torch.float64), (batch,), mask.to(kind)))
    return found


LOSSES = [
    FeatureCKALoss(),
    FeatureCKALoss(estimator="unbiased"),
    RCKALoss(1, 0, 0),
    *(
        HiddenStateCKALoss(pooling=p, estimator=e)
        for p in ("all", "mean", "last", "cls")
        for e in ("biased", "unbiased")
    ),
    SPLoss(),
    RKDLoss(),
    CCLoss(),
    FitNetLoss(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: str(loss)[:60].replace("\n", ""))
def test_the_padding_changes_neither_value_nor_gradient(loss):
    if hasattr(loss, "prepare"):
        torch.manual_seed(0)
        loss.prepare(*(outputs.features for outputs in sides()))
    found = []
    for side, extra, garbage, kind in (
        ("right", 0, 0.0, torch.bool),
        ("right", 3, float("nan"), torch.int64),
        ("left", 2, 7.0, torch.float32),
        ("left", 0, float("inf"), torch.bool),
    ):
        student, teacher = sides(side, extra, garbage, kind)
        batch = student.features[0].requires_grad_()
        value = loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, batch)
        real = student.mask.bool()
        assert not gradient[~real].any()
        found.append((value.detach(), gradient[real]))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_values_against_brute_force(estimator):
    x, y = sentences(4, 0), sentences(6, 1)
    means = [np.stack([row.mean(0).numpy() for row in rows]) for rows in (x, y)]
    student, teacher = sides("left", 2)
    expected = 1 - reference.cka(*means, estimator)
    assert float(FeatureCKALoss(estimator=estimator)(student, teacher)) == pytest.approx(expected, abs=1e-12)
    rows = [torch.cat(rows).numpy() for rows in (x, y)]
    expected = 1 - reference.cka(*rows, estimator)
    assert float(HiddenStateCKALoss(estimator=estimator)(student, teacher)) == pytest.approx(expected, abs=1e-12)


def test_fitnet_is_the_mean_over_the_entries_of_real_tokens():
    student, teacher = sides("right", 1)
    loss = FitNetLoss(1.0)
    loss.prepare(student.features, teacher.features)
    (layer,) = loss.adapters.maps
    errors = [(layer(a) - b).square() for a, b in zip(sentences(4, 0), sentences(6, 1), strict=True)]
    torch.testing.assert_close(loss(student, teacher), torch.cat(errors).mean())


@pytest.mark.parametrize(("tokens", "width"), [(40, 3), (6, 30)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_cka_of_real_rows_in_both_forms_with_a_large_mean(tokens, width, estimator):
    generator = torch.Generator().manual_seed(0)
    x, y = (1e4 + torch.randn(2 * tokens, width + k, generator=generator) for k in (0, 2))
    real = torch.rand(2 * tokens, generator=generator) < 0.6
    expected = reference.cka(x[real].double().numpy(), y[real].double().numpy(), estimator)
    assert float(cka_of_tokens(x, y, real, estimator)) == pytest.approx(float(expected), abs=1e-9)
    assert cka_of_tokens(torch.ones_like(x), y, real, estimator).isnan()


def test_matrices_are_not_masked_and_each_network_has_its_own_mask():
    """The pooled output (B, d) beside tokens; a teacher with another tokenizer, so with other tokens."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, 8, generator=generator, dtype=torch.float64)  # T = 8 would fit (6, 8)
    longer = [torch.cat([row, row]) for row in sentences(6, 1)]
    (x, mask_x), student_means = padded(sentences(4, 0), "right", 3), [row.mean(0) for row in sentences(4, 0)]
    y = torch.full((6, 11, 6), torch.nan, dtype=torch.float64)
    mask_y = torch.zeros(6, 11)
    for index, row in enumerate(longer):
        y[index, : len(row)], mask_y[index, : len(row)] = row, 1
    value = FeatureCKALoss()(Outputs(None, (x, vectors), mask_x), Outputs(None, (y, vectors * 2), mask_y))
    first = FeatureCKALoss()(torch.stack(student_means), torch.stack([row.mean(0) for row in longer]))
    torch.testing.assert_close(value, first / 2)
    # One mask is enough where it fits both.
    student, teacher = sides()
    for loss in (FeatureCKALoss(), HiddenStateCKALoss()):
        expected = loss(student, teacher)
        torch.testing.assert_close(loss(student._replace(mask=None), teacher), expected)
        torch.testing.assert_close(loss(student, teacher._replace(mask=None)), expected)


def test_what_a_mask_cannot_do_is_said():
    student, teacher = sides()
    empty = student._replace(mask=student.mask & (torch.arange(6) != 2)[:, None])
    for loss in (FeatureCKALoss(), SPLoss(), HiddenStateCKALoss(pooling="mean")):
        with pytest.raises(ValueError, match="Sample 2 of the batch has no real token in the"):
            loss(empty, teacher)
    none = torch.zeros_like(student.mask)
    with pytest.raises(ValueError, match="The batch has 0 real tokens, but the biased CKA needs at least 2"):
        HiddenStateCKALoss()(student._replace(mask=none), teacher)
    dead = Outputs(None, (torch.full((6, 5, 4), 3.0, dtype=torch.float64),), student.mask)
    with pytest.raises(ValueError, match=r"The student's hidden states of layers 0 and 0, shape \(30, 4\), are const"):
        HiddenStateCKALoss()(dead, teacher)
    with pytest.warns(
        UserWarning, match=r"student's feature 0 has the shape \(6, 5, 4\), which the mask \(6, 9\) does"
    ):
        FeatureCKALoss()(Outputs(None, (torch.randn(6, 5, 4),), torch.ones(6, 9)), torch.randn(6, 5, 4))
