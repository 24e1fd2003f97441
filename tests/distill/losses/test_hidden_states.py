"""CKA of hidden states: the definition, padding, depths, gradient, and bad input."""

import numpy as np
import pytest
import reference
import torch

from cka_probe.distill.losses.contract import Outputs
from cka_probe.distill.losses.hidden_states import HiddenStateCKALoss, match_depths


def states(depth, width, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*tokens, width, generator=generator, dtype=torch.float64) for _ in range(depth)]


def test_real_tokens_are_the_samples_and_depths_are_paired_from_the_end():
    student, teacher = states(2, 5, (4, 6), 0), states(4, 9, (4, 6), 1)
    mask = torch.ones(4, 6)
    mask[1, 3:] = 0
    mask[3, :2] = 0
    real = mask.bool()
    expected = 1 - np.mean(
        [reference.cka(student[i][real].numpy(), teacher[j][real].numpy(), "biased") for i, j in ((0, 1), (1, 3))]
    )
    for outputs in (
        (masked(student, mask), teacher),
        (student, masked(teacher, mask)),
        (masked(student, mask.bool()), teacher),
    ):
        assert float(HiddenStateCKALoss()(*outputs)) == pytest.approx(expected, abs=1e-12)
    terms = HiddenStateCKALoss(2).terms(masked(student, mask), teacher, torch.zeros(4))
    assert {name: float(term) for name, term in terms.items()} == {"hidden_states": pytest.approx(2 * expected)}
    assert HiddenStateCKALoss(0).terms(student, teacher) == {}


def masked(states, mask):
    return Outputs(features=tuple(states), mask=mask)


@pytest.mark.parametrize("pooling", ["all", "mean", "last"])
def test_padding_does_not_change_the_loss(pooling):
    student, teacher = states(1, 5, (6, 4), 0), states(1, 7, (6, 4), 1)
    mask = torch.ones(6, 4)
    loss = HiddenStateCKALoss(pooling=pooling)
    padded = [
        [torch.cat([x, torch.full((6, 3, x.shape[2]), torch.nan, dtype=x.dtype)], 1) for x in s]
        for s in (student, teacher)
    ]
    longer = torch.cat([mask, torch.zeros(6, 3)], 1)
    value = loss(masked(padded[0], longer), padded[1])
    torch.testing.assert_close(value, loss(masked(student, mask), teacher), rtol=0, atol=1e-12)


def test_the_gradient_is_right():
    student, teacher = states(1, 3, (3, 2), 0), states(1, 4, (3, 2), 1)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    student[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: HiddenStateCKALoss(2.0)(masked([x], mask), teacher), student)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [(3, 3, [(0, 0), (1, 1), (2, 2)]), (2, 6, [(0, 2), (1, 5)]), (4, 2, [(1, 0), (3, 1)]), (1, 12, [(0, 11)])],
)
def test_depths(student, teacher, pairs):
    assert match_depths(student, teacher) == pairs


def test_mistakes_are_said():
    with pytest.raises(ValueError, match="at least one layer, got 0 and 3"):
        match_depths(0, 3)
    with pytest.raises(ValueError, match="`pooling` must be"):
        HiddenStateCKALoss(pooling="max")
    with pytest.raises(ValueError, match="Both models must see the same tokens"):
        HiddenStateCKALoss()(states(1, 3, (4, 6), 0), states(1, 3, (4, 5), 0))
    student, teacher = states(2, 3, (4, 6), 0), states(1, 5, (4, 6), 1)
    with pytest.raises(ValueError, match=r"the student has 2 and the teacher 0. Pass Outputs\(features=hidden_states"):
        HiddenStateCKALoss()(student, [])
    with pytest.raises(ValueError, match=r"the student's layer 1 has shape \(4, 18\) instead of \(B, T, d\)"):
        HiddenStateCKALoss()([x.flatten(1) for x in student], teacher)
    with pytest.raises(ValueError, match=r"The mask has shape \(4, 5\), but layer 1 holds tokens \(4, 6\)"):
        HiddenStateCKALoss()(masked(student, torch.ones(4, 5)), teacher)


def test_a_mask_in_the_place_of_the_target_is_refused():
    """Version 0.1 took (student_states, teacher_states, attention_mask)."""
    student, teacher = states(1, 3, (4, 6), 0), states(1, 5, (4, 6), 1)
    with pytest.raises(
        TypeError, match=r"looks like an attention mask. Call loss\(Outputs\(features=student_states, mask"
    ):
        HiddenStateCKALoss()(student, teacher, torch.ones(4, 6))
    labels = torch.arange(24).view(4, 6)  # class labels of tokens, or of sequences, are no mask
    expected = HiddenStateCKALoss()(student, teacher)
    assert torch.equal(HiddenStateCKALoss()(student, teacher, labels), expected)
    assert torch.equal(HiddenStateCKALoss()(student, teacher, torch.ones(4)), expected)
    mask = torch.ones(4, 6)
    assert torch.equal(HiddenStateCKALoss()(masked(student, mask), teacher, mask), expected)
