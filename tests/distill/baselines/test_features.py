"""FitNet, AT, PKD and CWD against loops written from the equation of each paper; adapters, sizes, dead channels."""

import math

import numpy as np
import pytest
import torch
from baselines_by_hand import MAPS, divergence, normal, softmax
from torch import nn

from cka_probe.distill.baselines import ATLoss, CWDLoss, FitNetLoss, PKDLoss


def test_fitnet():
    x, y = normal(2, 3, 4, 4), normal(2, 5, 4, 4, seed=1)
    loss = FitNetLoss(4)
    loss.prepare([x], [y])
    loss.double()
    weight, bias = (p.detach().numpy() for p in loss.parameters())
    expected = 0.0
    for b in range(2):
        for i in range(4):
            for j in range(4):
                mapped = weight[:, :, 0, 0] @ x[b, :, i, j].numpy() + bias
                expected += sum((mapped - y[b, :, i, j].numpy()) ** 2)
    assert float(loss([x], [y]).detach()) == pytest.approx(4 * expected / y.numel(), rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_at(power):
    x, y = normal(2, 3, 4, 5), normal(2, 7, 4, 5, seed=1)
    total = 0.0
    for b in range(2):
        maps = []
        for z in (x[b].numpy(), y[b].numpy()):
            attention = [sum(abs(a) ** power for a in z[:, i, j]) for i in range(4) for j in range(5)]
            maps.append(np.array(attention) / math.sqrt(sum(a * a for a in attention)))
        total += sum((maps[0] - maps[1]) ** 2)
    assert float(ATLoss(3, power)([x], [y])) == pytest.approx(3 * total / (2 * 20), rel=1e-12)


def test_pkd_is_half_the_squared_difference_of_standardised_features():
    x, y = MAPS
    total = 0.0
    for channel in range(4):
        a, b = (z[:, channel].numpy().ravel() for z in (x, y))
        a, b = ((v - v.mean()) / v.std() for v in (a, b))
        total += sum((a - b) ** 2) / 2 / len(a)
    assert float(PKDLoss(5)([x], [y])) == pytest.approx(5 * total / 4, rel=1e-12)


def test_cwd():
    x, y = MAPS
    total = 0.0
    for b in range(3):
        for channel in range(4):
            student, teacher = (softmax(z[b, channel].flatten().tolist(), 2.0) for z in (x, y))
            total += divergence(teacher, student)
    assert float(CWDLoss(3, 2.0)([x], [y])) == pytest.approx(3 * 4 * total / (3 * 4), rel=1e-12)


def test_maps_are_pooled_to_the_smaller_size():
    x, y = normal(2, 3, 8, 8), normal(2, 3, 4, 4, seed=1)
    blocks = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(PKDLoss()([x], [y]), PKDLoss()([blocks], [y]))


def test_adapters_train_with_the_student():
    torch.manual_seed(0)
    x, y = normal(8, 3, 4, 4, dtype=torch.float32), normal(8, 6, 4, 4, seed=1, dtype=torch.float32)
    y[:, :3] = x
    y[:, 3:] = -x
    loss = FitNetLoss()
    loss.prepare([x], [y])
    optimizer = torch.optim.Adam(loss.parameters(), 0.1)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss([x], [y])
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


def test_tokens_and_matrices_have_linear_adapters():
    loss = FitNetLoss()
    student = [normal(2, 7, 4, dtype=torch.float32), normal(2, 5, dtype=torch.float32)]
    teacher = [normal(2, 7, 9, dtype=torch.float32), normal(2, 5, dtype=torch.float32)]
    loss.prepare(student, teacher)
    assert [type(layer) for layer in loss.adapters.maps] == [nn.Linear, nn.Linear]
    assert bool(torch.isfinite(loss(student, teacher)))


def test_equal_channels_need_no_adapter_in_cwd():
    loss = CWDLoss()
    loss.prepare([MAPS[0]], [MAPS[1]])
    assert list(loss.parameters()) == []


def test_a_dead_channel_counts_as_uncorrelated():
    x, y = (z.clone() for z in MAPS)
    y[:, 1] = 0.5
    x.requires_grad_()
    value = PKDLoss()([x], [y])
    alive = [0, 2, 3]
    expected = (3 * PKDLoss()([x[:, alive]], [y[:, alive]]) + 1) / 4
    torch.testing.assert_close(value, expected)
    value.backward()
    assert bool(torch.isfinite(x.grad).all())


def test_an_adapter_sees_other_channels_than_before():
    loss = FitNetLoss()
    loss.prepare([MAPS[0]], [MAPS[1]])
    with pytest.raises(RuntimeError, match="has 2 channels, but `prepare` saw 4"):
        loss([MAPS[0][:, :2].float()], [MAPS[1].float()])
    with pytest.raises(ValueError, match=r"FitNetLoss compares features entry by entry, but feature 0 has shape"):
        loss([MAPS[0].float()], [MAPS[1][:, :2].float()])


@pytest.mark.parametrize("prepared_in", [torch.float32, torch.float64])
def test_adapters_take_float64_features(prepared_in):
    x, y = normal(2, 3, 4, 4), normal(2, 5, 4, 4, seed=1)
    loss = FitNetLoss()
    loss.prepare([x.to(prepared_in)], [y])
    value = loss([x], [y])
    (gradient,) = torch.autograd.grad(value, [loss.adapters.maps[0].bias])
    assert value.isfinite()
    assert gradient.dtype == prepared_in
