"""PCKA: the definition channel by channel, the released formulas, adapters, edge cases, and bad input."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from maps_by_hand import PYRAMID, by_slices, cka, compare, normal, smooth, uncentred

from cka_probe.distill.dense import PatchCKALoss


def test_four_pyramid_levels_equal_the_definition_channel_by_channel():
    student = [smooth(2, 2, *size) for size in PYRAMID]
    teacher = [smooth(2, 2, *size, seed=10) for size in PYRAMID]

    def expected(levels):
        sides = (16, 16, 8, 4)
        return 10 * sum(1 - by_slices(x, y, p, "patch", cka) for x, y, p in zip(levels, teacher, sides, strict=True))

    compare(PatchCKALoss(), student, teacher, expected)


def test_inter_of_four_pyramid_levels_equals_the_definition_channel_by_channel():
    student = [smooth(1, 2, *size) for size in PYRAMID]
    teacher = [smooth(1, 2, *size, seed=10) for size in PYRAMID]

    def expected(levels):
        total = 0
        for x, y, side in zip(levels, teacher, (16, 16, 8, 4), strict=True):
            total = total + 10 * (1 - by_slices(x, y, side, "patch", cka))
            total = total + 10 * (1 - by_slices(x, y, side, "patch", cka, inter=True))
        return total

    compare(PatchCKALoss(inter_weight=10), student, teacher, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"inter_weight": 2.0},
        {"relation": "pixel", "inter_weight": 2.0},
        {"relation": "sample", "inter_weight": 2.0, "mimic_weight": 1.0},
        {"variant": "released", "inter_weight": 1.0},
        {"estimator": "unbiased"},
    ],
    ids=str,
)
def test_gradcheck(settings):
    x, y = smooth(2, 1, 8, 8).requires_grad_(), smooth(2, 1, 8, 8, seed=10)
    loss = PatchCKALoss(4, min_patches=4, **settings)
    assert torch.autograd.gradcheck(lambda z: loss([z], [y]), x, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("relation", ["patch", "sample", "pixel"])
@pytest.mark.parametrize("inter", [0, 7])
def test_released_patches(relation, inter):
    """Multiples of 16, un-centred, the mean over slices, and the intra weight for inter."""
    student, teacher = [smooth(2, 2, 30, 40)], [smooth(2, 2, 30, 40, seed=10)]
    resize = [F.interpolate(teacher[0], (32, 48), mode="bilinear")]

    def expected(levels):
        x = F.interpolate(levels[0], (32, 48), mode="bilinear")
        total = -10 * by_slices(x, resize[0], 16, relation, uncentred)
        if inter and relation != "sample":
            total = total - 10 * by_slices(x, resize[0], 16, relation, uncentred, inter=True)
        return total

    inter = 0 if relation == "sample" else inter
    compare(PatchCKALoss(relation=relation, inter_weight=inter, variant="released"), student, teacher, expected)


def test_released_pyramid_is_the_sum_of_its_levels():
    student = [smooth(1, 2, *size) for size in PYRAMID]
    teacher = [smooth(1, 2, *size, seed=10) for size in PYRAMID]

    def expected(levels):
        resize = [F.interpolate(z, [16 * math.ceil(s / 16) for s in z.shape[2:]], mode="bilinear") for z in levels]
        others = [F.interpolate(z, [16 * math.ceil(s / 16) for s in z.shape[2:]], mode="bilinear") for z in teacher]
        return -10 * sum(by_slices(x, y, 16, "patch", uncentred) for x, y in zip(resize, others, strict=True))

    compare(PatchCKALoss(variant="released"), student, teacher, expected)


def test_other_channels_need_an_adapter_that_learns():
    torch.manual_seed(0)
    student, teacher = [smooth(2, 3, 16, 16, dtype=torch.float32)], [smooth(2, 6, 16, 16, dtype=torch.float32)]
    loss = PatchCKALoss(4)
    with pytest.raises(RuntimeError, match=r"no adapter for feature 0: call loss\.prepare"):
        loss(student, teacher)
    loss.prepare(student, teacher)
    assert [p.shape for p in loss.parameters()] == [(6, 3, 1, 1), (6,)]
    loss(student, teacher).backward()
    assert float(loss.adapters.maps[0].weight.grad.abs().sum()) > 0
    free = PatchCKALoss(4, "sample")
    free.prepare(student, teacher)
    assert list(free.parameters()) == []
    with pytest.raises(RuntimeError, match="saw a teacher of other channels at level 0 than 4"):
        loss(student, [teacher[0][:, :4]])


def test_mimic_is_the_mean_squared_difference_of_the_levels():
    student, teacher = [smooth(2, 3, 16, 16)], [smooth(2, 3, 8, 8, seed=10)]
    terms = PatchCKALoss(4, mimic_weight=0.5).terms(student, teacher)
    expected = (student[0] - F.interpolate(teacher[0], (16, 16), mode="bilinear")).square().mean()
    assert float(terms["mimic"]) == pytest.approx(0.5 * float(expected), rel=1e-12)
    assert list(terms) == ["intra", "mimic"]


def test_a_perfect_match_is_zero():
    levels = [smooth(2, 3, 32, 32), smooth(2, 3, 16, 16)]
    loss = PatchCKALoss(8, inter_weight=10, mimic_weight=1)
    assert abs(float(loss(levels, levels))) < 1e-12
    assert abs(float(PatchCKALoss(8)([5 * z - 3 for z in levels], levels))) < 1e-12


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_one_patch(variant):
    """Intra needs several patches; inter is defined for one."""
    x, y = smooth(2, 3, 16, 16).requires_grad_(), smooth(2, 3, 16, 16, seed=10)
    loss = PatchCKALoss(16, inter_weight=10, variant=variant, min_patches=1)
    with pytest.warns(UserWarning, match="1 patches of 16 x 16.* no intra term") if variant == "paper" else quiet():
        terms = loss.terms([x], [y])
    sum(terms.values()).backward()
    assert float(terms["intra"].detach()) == pytest.approx(0 if variant == "paper" else -10)
    inter = by_slices(x.detach(), y, 16, "patch", cka if variant == "paper" else uncentred, inter=True)
    expected = 10 * (1 - inter) if variant == "paper" else -10 * inter
    assert float(terms["inter"].detach()) == pytest.approx(float(expected), abs=1e-9)
    assert bool(torch.isfinite(x.grad).all())
    with quiet():  # the warning comes once
        loss.terms([x], [y])


class quiet:  # noqa: N801 - reads as a statement
    """Fails on any warning."""

    def __enter__(self):
        self.catch = warnings.catch_warnings()
        self.catch.__enter__()
        warnings.simplefilter("error")

    def __exit__(self, *error):
        self.catch.__exit__(*error)


@pytest.mark.parametrize("relation", ["patch", "sample", "pixel"])
def test_a_batch_of_one(relation):
    x, y = smooth(1, 3, 16, 24).requires_grad_(), smooth(1, 3, 16, 24, seed=10)
    value = PatchCKALoss(4, relation, inter_weight=10)([x], [y])
    value.backward()
    assert 0 < float(value.detach()) < 20
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = [(100 * smooth(2, 3, 32, 32)).to(dtype).requires_grad_()]
    y = [smooth(2, 3, 32, 32, seed=10, dtype=dtype)]
    loss = PatchCKALoss(8, inter_weight=10)
    exact = loss([x[0].detach().double()], [y[0].double()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact), abs=1e-4)
    value.backward()
    assert x[0].grad.dtype == dtype
    assert bool(torch.isfinite(x[0].grad).all())


def test_the_report_gives_each_level_beside_its_chance_level():
    student, teacher = [smooth(2, 3, 32, 48), smooth(2, 3, 8, 12)], [smooth(2, 3, 32, 48, seed=10)] * 2
    loss = PatchCKALoss(8)
    rows = loss.report(student, teacher)
    assert [(r["height"], r["width"], r["patch"], r["patches"], r["entries"]) for r in rows] == [
        (32, 48, 8, 24, 128),
        (8, 12, 2, 24, 8),
    ]
    assert sum(1 - r["intra"] for r in rows) * 10 == pytest.approx(float(loss(student, teacher)))
    assert all(0 < r[f"{name}_chance"] < 1 for r in rows for name in ("intra", "inter"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"patch": 0}, ValueError, "`patch` must be at least 1, got 0"),
        ({"patch": 2.5}, TypeError, "`patch` must be a whole number"),
        ({"min_patches": 0}, ValueError, "`min_patches` must be at least 1"),
        ({"relation": "channel"}, ValueError, "`relation` must be one of patch, sample, pixel"),
        ({"intra_weight": -1}, ValueError, "`intra_weight` must not be negative"),
        ({"mimic_weight": -1}, ValueError, "`mimic_weight` must not be negative"),
        ({"estimator": "x"}, ValueError, "`estimator` must be"),
        ({"variant": "x"}, ValueError, "`variant` must be"),
        ({"variant": "released", "estimator": "unbiased"}, ValueError, "The released code is not unbiased"),
    ],
)
def test_settings_that_cannot_be(settings, error, message):
    with pytest.raises(error, match=message):
        PatchCKALoss(**settings)


def test_matrices_are_no_maps():
    with pytest.raises(ValueError, match=r"the teacher's level 0 has shape \(2, 3\) instead of \(B, C, H, W\)"):
        PatchCKALoss()([smooth(2, 3, 8, 8)], [normal(2, 3)])
