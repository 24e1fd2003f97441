"""PCKA and the alignment of score maps: per-channel definition, the released formulas, edge cases, bad input."""

import math
import warnings

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

from cka_probe.distill.dense import PatchCKALoss, SegmentationCKALoss
from cka_probe.distill.losses import patches as patches_module
from cka_probe.distill.losses.patches import patch_size

F64 = torch.float64
PYRAMID = ((128, 160), (64, 80), (32, 40), (16, 20))


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def smooth(*shape, seed=0, dtype=F64):
    """A map with structure from pixel to pixel, a level of its own in each channel, and an image-wide trend."""
    height, width = shape[2:]
    coarse = F.interpolate(normal(shape[0], shape[1], 5, 6, seed=seed), (height, width), mode="bicubic")
    level = 3 * normal(1, shape[1], 1, 1, seed=seed + 1)
    return (coarse + 0.5 * normal(*shape, seed=seed + 2) + level).to(dtype)


# --- the definition, slice by slice -------------------------------------------------------------------------------


def cut_by_hand(x, patch, relation):
    """One (patches, entries) matrix a slice, with loops."""
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
    """Departure 1."""
    k, other = x @ x.T, y @ y.T
    return torch.trace(k @ other.T) / torch.sqrt(torch.trace(k @ k.T) * torch.trace(other @ other.T))


def by_slices(student, teacher, patch, relation, measure, inter=False):
    values = []
    for a, b in zip(cut_by_hand(student, patch, relation), cut_by_hand(teacher, patch, relation), strict=True):
        values.append(measure(a.T, b.T) if inter else measure(a, b))
    return torch.stack(values).mean()


def compare(loss, student, teacher, expected, tolerance=1e-10):
    """Value and gradient of a loss against those of a reference built by hand."""
    student = [level.clone().requires_grad_() for level in student]
    reference_value = expected(student)
    gradients = torch.autograd.grad(reference_value, student)
    value = loss(student, teacher)
    found = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, reference_value, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


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


def test_many_small_patches_take_the_estimators_route():
    student, teacher = [smooth(1, 2, 12, 16)], [smooth(1, 2, 12, 16, seed=10)]

    def expected(levels):
        values = [by_slices(levels[0], teacher[0], 2, "patch", cka, inter=inter) for inter in (False, True)]
        return 10 * (1 - values[0]) + 10 * (1 - values[1])

    compare(PatchCKALoss(2, inter_weight=10), student, teacher, expected)


@pytest.mark.parametrize("relation", ["patch", "sample", "pixel"])
def test_unbiased(relation):
    student, teacher = smooth(2, 3, 12, 16), smooth(2, 3, 12, 16, seed=10)
    stacks = [cut_by_hand(z, 4, relation) for z in (student, teacher)]
    terms = PatchCKALoss(4, relation, 2, 3, estimator="unbiased", min_patches=1).terms([student], [teacher])
    intra = np.mean([reference.cka(a.numpy(), b.numpy()) for a, b in zip(*stacks, strict=True)])
    inter = np.mean([reference.cka(a.T.numpy(), b.T.numpy()) for a, b in zip(*stacks, strict=True)])
    assert float(terms["intra"]) == pytest.approx(2 * (1 - intra), abs=1e-10)
    assert float(terms["inter"]) == pytest.approx(3 * (1 - inter), abs=1e-10)


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


# --- the released code, written out from PAPER.md -----------------------------------------------------------------


@pytest.mark.parametrize("relation", ["patch", "sample", "pixel"])
@pytest.mark.parametrize("inter", [0, 7])
def test_released_patches(relation, inter):
    """Multiples of 16, un-centred, the mean over slices, inter weighted by the intra weight."""
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


# --- sizes, channels, edges ---------------------------------------------------------------------------------------


def test_coarse_levels_get_smaller_patches():
    assert [patch_size(*size, 16, 16) for size in PYRAMID] == [16, 16, 8, 4]
    assert patch_size(1, 1, 16, 16) == 1
    assert patch_size(16, 16, 16, 1) == 16


def test_sides_that_are_no_multiples_are_resized():
    student, teacher = smooth(2, 2, 13, 18), smooth(2, 2, 20, 11, seed=10)
    loss = PatchCKALoss(4, min_patches=1)

    def expected(levels):
        x = F.interpolate(levels[0], (16, 20), mode="bilinear")
        y = F.interpolate(teacher, (16, 20), mode="bilinear")
        return 10 * (1 - by_slices(x, y, 4, "patch", cka))

    compare(loss, [student], [teacher], expected)


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
    """Nothing can be said about the relation of one patch to others; inter is defined."""
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
    """As bright as 1e4 of the others, or as dark."""
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


@pytest.mark.parametrize("patch", [2, 8])
@pytest.mark.parametrize("value", [0.0, 3.3])
def test_dead_channels(patch, value):
    """Left out where the teacher's is dead, counted as 0 where the student's alone is; by either route."""
    x, y = smooth(2, 4, 32, 32, dtype=torch.float32), smooth(2, 4, 32, 32, seed=10, dtype=torch.float32)
    loss = PatchCKALoss(patch, inter_weight=10)
    alive = loss.terms([x[:, 2:]], [y[:, 2:]])
    one, other = x.clone(), y.clone()
    one[:, 1] = value
    other[:, 0] = value
    one.requires_grad_()
    terms = loss.terms([one], [other])
    for name in ("intra", "inter"):
        assert float(terms[name].detach()) == pytest.approx(10 - 2 * (10 - float(alive[name])) / 3, abs=1e-4)
    sum(terms.values()).backward()
    assert bool(torch.isfinite(one.grad).all())
    assert float(one.grad[:, :2].abs().max()) == 0.0


def test_a_dead_teacher_and_infinite_students_are_named():
    x, y = smooth(2, 3, 16, 16), smooth(2, 3, 16, 16, seed=10)
    with pytest.raises(ValueError, match=r"The teacher's level 1, .* is constant over its patches in every slice"):
        PatchCKALoss(4)([x, x], [y, torch.ones_like(y)])
    x[0, 1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"The student's level 0, .* holds NaN or infinity"):
        PatchCKALoss(4)([x], [y])


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


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", ["intra", "inter"])
def test_the_chance_level_is_the_mean_over_shuffled_patches(variant, name):
    x, y = smooth(1, 1, 8, 12), smooth(1, 1, 8, 12, seed=10)
    row = PatchCKALoss(4, variant=variant, min_patches=1).report([x], [y])[0]
    a, b = (cut_by_hand(z, 4, "patch")[0] for z in (x, y))
    a, b = (a, b) if name == "intra" else (a.T, b.T)
    generator = torch.Generator().manual_seed(0)
    measure = cka if variant == "paper" else uncentred
    values = [float(measure(a, b[torch.randperm(len(b), generator=generator)])) for _ in range(3000)]
    error = np.std(values) / math.sqrt(len(values))
    assert row[f"{name}_chance"] == pytest.approx(np.mean(values), abs=4 * error)
    assert row[name] == pytest.approx(float(measure(a, b)), abs=1e-10)


def test_uncentred_patches_of_independent_maps_start_near_one():
    """PAPER.md, departure 11; the unbiased estimator starts at 0."""
    x, y = (F.relu(normal(4, 8, 64, 80, seed=seed)) for seed in (0, 1))
    assert PatchCKALoss(variant="released").report([x], [y])[0]["intra"] > 0.8
    row = PatchCKALoss(estimator="unbiased").report([x], [y])[0]
    assert abs(row["intra"]) < 0.1
    assert row["intra_chance"] == 0.0


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


# --- score maps ---------------------------------------------------------------------------------------------------


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
    """Rows alone divided by the root of the diagonal, (C H W)^2 Gram matrices formed; inter has the intra weight."""

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
    """The (P H W)^2 Gram of these would have 1.6e9 entries."""
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
