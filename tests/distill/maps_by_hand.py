"""Random maps, and the patchwise CKA of them with loops, that tests compare the losses of maps with."""

import torch
import torch.nn.functional as F

F64 = torch.float64

PYRAMID = ((128, 160), (64, 80), (32, 40), (16, 20))


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def smooth(*shape, seed=0, dtype=F64):
    """Random maps (n, c, h, w): a smooth part, noise, and another mean in each channel."""
    height, width = shape[2:]
    coarse = F.interpolate(normal(shape[0], shape[1], 5, 6, seed=seed), (height, width), mode="bicubic")
    level = 3 * normal(1, shape[1], 1, 1, seed=seed + 1)
    return (coarse + 0.5 * normal(*shape, seed=seed + 2) + level).to(dtype)


def cut_by_hand(x, patch, relation):
    """One (patches, entries) matrix for each slice, with loops."""
    batch, channels, height, width = x.shape
    corners = [(i, j) for i in range(0, height, patch) for j in range(0, width, patch)]
    tiles = [
        [[x[b, c, i : i + patch, j : j + patch] for i, j in corners] for c in range(channels)] for b in range(batch)
    ]
    stacks = []
    if relation == "patch":
        for c in range(channels):
            rows = [torch.stack([tiles[b][c][k] for b in range(batch)]).flatten() for k in range(len(corners))]
            stacks.append(torch.stack(rows))
    elif relation == "sample":
        for b in range(batch):
            rows = [torch.stack([tiles[b][c][k] for c in range(channels)]).flatten() for k in range(len(corners))]
            stacks.append(torch.stack(rows))
    else:
        for i in range(patch):
            for j in range(patch):
                rows = [
                    torch.stack([tiles[b][c][k][i, j] for b in range(batch) for c in range(channels)])
                    for k in range(len(corners))
                ]
                stacks.append(torch.stack(rows))
    return stacks


def cka(x, y):
    """Biased CKA with centring matrices, differentiable."""
    h = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    k, other = h @ x @ x.T @ h, h @ y @ y.T @ h
    return (k * other).sum() / torch.sqrt((k * k).sum() * (other * other).sum())


def uncentred(x, y):
    """Alignment of Gram matrices that are not centred (docs/paper.md, departure 1)."""
    k, other = x @ x.T, y @ y.T
    return torch.trace(k @ other.T) / torch.sqrt(torch.trace(k @ k.T) * torch.trace(other @ other.T))


def by_slices(student, teacher, patch, relation, measure, inter=False):
    """Mean of a measure over the slices of two maps."""
    values = []
    for a, b in zip(cut_by_hand(student, patch, relation), cut_by_hand(teacher, patch, relation), strict=True):
        values.append(measure(a.T, b.T) if inter else measure(a, b))
    return torch.stack(values).mean()


def compare(loss, student, teacher, expected, tolerance=1e-10):
    """Compare value and gradient of a loss with those of a reference by hand."""
    student = [level.clone().requires_grad_() for level in student]
    reference_value = expected(student)
    gradients = torch.autograd.grad(reference_value, student)
    value = loss(student, teacher)
    found = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, reference_value, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
