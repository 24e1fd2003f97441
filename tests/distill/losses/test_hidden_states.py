import numpy as np
import pytest
import reference
import torch

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
    assert float(HiddenStateCKALoss()(student, teacher, mask)) == pytest.approx(expected, abs=1e-12)


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
    torch.testing.assert_close(loss(*padded, longer), loss(student, teacher, mask), rtol=0, atol=1e-12)


def test_the_gradient_is_right():
    student, teacher = states(1, 3, (3, 2), 0), states(1, 4, (3, 2), 1)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    student[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: HiddenStateCKALoss(2.0)([x], teacher, mask), student)


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
