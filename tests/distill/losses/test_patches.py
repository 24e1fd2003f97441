"""Maps cut into patches and their products, through PatchCKALoss: sizes, relations, layout, and any scale."""

import pytest
import torch
import torch.nn.functional as F
from maps_by_hand import PYRAMID, by_slices, cka, compare, smooth

from cka_probe.distill.dense import PatchCKALoss
from cka_probe.distill.losses import patches as patches_module
from cka_probe.distill.losses.patches import patch_size


def test_coarse_levels_get_smaller_patches():
    assert [patch_size(*size, 16, 16) for size in PYRAMID] == [16, 16, 8, 4]
    assert patch_size(1, 1, 16, 16) == 1
    assert patch_size(16, 16, 16, 1) == 16


@pytest.mark.parametrize("chunk", [1, 2**26])
def test_inter_equals_the_definition_channel_by_channel(monkeypatch, chunk):
    monkeypatch.setattr(patches_module, "CHUNK", (chunk, chunk))
    student, teacher = [smooth(2, 3, 12, 16)], [smooth(2, 3, 12, 16, seed=10)]

    def expected(levels):
        intra = by_slices(levels[0], teacher[0], 4, "patch", cka)
        inter = by_slices(levels[0], teacher[0], 4, "patch", cka, inter=True)
        return 10 * (1 - intra) + 3 * (1 - inter)

    compare(PatchCKALoss(4, inter_weight=3, min_patches=1), student, teacher, expected)
    compare(
        PatchCKALoss(4, intra_weight=0, inter_weight=3, min_patches=1),
        student,
        teacher,
        lambda levels: 3 * (1 - by_slices(levels[0], teacher[0], 4, "patch", cka, inter=True)),
    )


@pytest.mark.parametrize("relation", ["sample", "pixel"])
@pytest.mark.parametrize("channels", [3, 5])
def test_the_relations_without_channels(relation, channels):
    student, teacher = [smooth(2, 3, 12, 16)], [smooth(2, channels, 12, 16, seed=10)]

    def expected(levels):
        intra = by_slices(levels[0], teacher[0], 4, relation, cka)
        inter = by_slices(levels[0], teacher[0], 4, relation, cka, inter=True) if channels == 3 else 0
        return 2 * (1 - intra) + (3 * (1 - inter) if channels == 3 else 0)

    inter_weight = 3 if channels == 3 else 0
    compare(PatchCKALoss(4, relation, 2, inter_weight, min_patches=1), student, teacher, expected)


def test_sides_that_are_no_multiples_are_resized():
    student, teacher = smooth(2, 2, 13, 18), smooth(2, 2, 20, 11, seed=10)
    loss = PatchCKALoss(4, min_patches=1)

    def expected(levels):
        x = F.interpolate(levels[0], (16, 20), mode="bilinear")
        y = F.interpolate(teacher, (16, 20), mode="bilinear")
        return 10 * (1 - by_slices(x, y, 4, "patch", cka))

    compare(loss, [student], [teacher], expected)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_float32_at_any_level_and_scale(offset, scale):
    x = (scale * (smooth(2, 3, 32, 32) + offset)).float()
    y = smooth(2, 3, 32, 32, seed=10, dtype=torch.float32)
    loss = PatchCKALoss(8, inter_weight=10)
    exact = loss([x.double()], [y.double()])
    assert float(loss([x], [y])) == pytest.approx(float(exact), abs=2e-5)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_float32_where_the_first_patch_is_an_outlier(factor):
    """It is 1e4 times as large, or as small, as the others."""
    x, y = smooth(2, 3, 32, 32), smooth(2, 3, 32, 32, seed=10)
    x[:, :, :8, :8] *= factor
    exact, rough = x.clone().requires_grad_(), x.float().requires_grad_()
    loss = PatchCKALoss(8)
    values = [loss([a], [b]) for a, b in ((exact, y), (rough, y.float()))]
    gradients = [torch.autograd.grad(value, a)[0] for value, a in zip(values, (exact, rough), strict=True)]
    assert float(values[1].detach()) == pytest.approx(float(values[0].detach()), abs=2e-5)
    torch.testing.assert_close(gradients[1].double(), gradients[0], rtol=0, atol=1e-4 * float(gradients[0].abs().max()))


def test_a_map_in_channels_last_order():
    x, y = smooth(2, 4, 16, 16), smooth(2, 4, 16, 16, seed=10)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    first = x.clone().requires_grad_()
    for z in (last, first):
        PatchCKALoss(4)([z], [y]).backward()
    torch.testing.assert_close(last.grad, first.grad)


def test_the_maps_are_left_as_they_are():
    x, y = smooth(1, 1, 8, 8), smooth(1, 1, 8, 8, seed=10)
    copies = x.clone(), y.clone()
    PatchCKALoss(1, min_patches=1, inter_weight=10, relation="sample")([x], [y])
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
