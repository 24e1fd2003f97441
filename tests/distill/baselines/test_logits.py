"""KD, DKD and DIST against loops written from the equation of each paper, and degenerate input."""

import numpy as np
import pytest
import torch
from baselines_by_hand import F64, LOGITS, TARGET, divergence, pearson, softmax

from cka_probe.distill import Outputs
from cka_probe.distill.baselines import DISTLoss, DKDLoss, KDLoss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(temperature):
    rows = zip(*(z.tolist() for z in LOGITS), strict=True)
    values = [divergence(softmax(t, temperature), softmax(s, temperature)) for s, t in rows]
    expected = 0.7 * temperature**2 * np.mean(values)
    assert float(KDLoss(temperature, 0.7)(*LOGITS)) == pytest.approx(expected, rel=1e-12)


def test_kd_of_tokens_is_the_mean_over_the_real_ones():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 5, dtype=F64, generator=generator) for _ in "st")
    real = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = [(x[i, j].tolist(), y[i, j].tolist()) for i, j in ((0, 0), (0, 1), (1, 0))]
    expected = 4 * np.mean([divergence(softmax(t, 2.0), softmax(s, 2.0)) for s, t in rows])
    x[1, 1:] = float("nan")  # padding may hold anything
    x.requires_grad_()
    value = KDLoss(2.0, 1.0)(Outputs(x, (), real), Outputs(y, (), real))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
    value.backward()
    assert (x.grad[1, 1:] == 0).all()
    assert (x.grad[0, :2] != 0).all()
    whole = KDLoss(2.0, 1.0)(y + torch.arange(5), y)
    flat = KDLoss(2.0, 1.0)((y + torch.arange(5)).flatten(0, 1), y.flatten(0, 1))
    assert float(whole) == pytest.approx(float(flat), rel=1e-12)


def test_kd_refuses_a_mask_of_other_tokens():
    logits = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\), but its logits are those of \(2, 3\) tokens"):
        KDLoss()(Outputs(logits, (), torch.ones(2, 4)), Outputs(logits, ()))
    with pytest.raises(ValueError, match="Sample 1 of the batch has no real token"):
        KDLoss()(Outputs(logits, (), torch.tensor([[1, 1, 1], [0, 0, 0]])), Outputs(logits, ()))
    with pytest.raises(ValueError, match=r"\(B, classes\), or of tokens \(B, T, classes\)"):
        KDLoss()(logits[None], logits[None])


def test_dkd():
    temperature, tckd, nckd = 4.0, 0.0, 0.0
    for student, teacher, label in zip(*(z.tolist() for z in LOGITS), TARGET.tolist(), strict=True):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        tckd += divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest_p = [p[i] / (1 - p[label]) for i in range(5) if i != label]
        rest_q = [q[i] / (1 - q[label]) for i in range(5) if i != label]
        nckd += divergence(rest_p, rest_q)
    terms = DKDLoss(2.0, 3.0, temperature).terms(*LOGITS, target=TARGET)
    assert float(terms["tckd"]) == pytest.approx(2 * temperature**2 * tckd / 6, rel=1e-12)
    assert float(terms["nckd"]) == pytest.approx(3 * temperature**2 * nckd / 6, rel=1e-12)


def test_dkd_splits_kd_as_its_equation_5_says():
    """KD = TCKD + (1 - p_target of the teacher) NCKD, sample by sample."""
    for i in range(6):
        one = [z[i : i + 1] for z in LOGITS]
        terms = DKDLoss(1, 1, 4).terms(*one, target=TARGET[i : i + 1])
        rest = 1 - softmax(one[1][0].tolist(), 4.0)[TARGET[i]]
        expected = float(terms["tckd"]) + rest * float(terms["nckd"])
        assert float(KDLoss(4, 1)(*one)) == pytest.approx(expected, rel=1e-10)


def test_dist():
    temperature = 2.0
    student, teacher = (np.array([softmax(row, temperature) for row in z.tolist()]) for z in LOGITS)
    inter = 1 - np.mean([pearson(student[i], teacher[i]) for i in range(6)])
    intra = 1 - np.mean([pearson(student[:, j], teacher[:, j]) for j in range(5)])
    terms = DISTLoss(2, 3, temperature).terms(*LOGITS)
    assert float(terms["inter"]) == pytest.approx(2 * 4 * inter, rel=1e-12)
    assert float(terms["intra"]) == pytest.approx(3 * 4 * intra, rel=1e-12)


def test_a_class_that_never_varies_counts_as_uncorrelated():
    x = LOGITS[0].clone().requires_grad_()
    sure = torch.zeros(6, 5, dtype=F64)
    sure[:, 0] = 2000.0  # the softmax is exactly one-hot, the same for all samples
    terms = DISTLoss().terms(x, sure)
    assert float(terms["intra"].detach()) == 1.0
    sum(terms.values()).backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 1], TypeError, "class indices as a tensor of integers"),
        (torch.zeros(6), TypeError, "got torch.float32"),
        (torch.zeros(5, dtype=torch.long), ValueError, r"one class for each of the \d+ samples, got a target of shape"),
        (torch.full((6,), 99), ValueError, "the target holds classes from 99 to 99"),
    ],
)
def test_dkd_names_a_wrong_target(target, error, message):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(error, match=message):
        DKDLoss()(logits, logits, target)
