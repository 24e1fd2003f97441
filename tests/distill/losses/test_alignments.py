"""Mean alignment over slices, through PatchCKALoss: both forms, constant slices, and the chance level."""

import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from maps_by_hand import by_slices, cka, compare, cut_by_hand, normal, smooth, uncentred

from cka_probe.distill.dense import PatchCKALoss


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


@pytest.mark.parametrize("patch", [2, 8])
@pytest.mark.parametrize("value", [0.0, 3.3])
def test_dead_channels(patch, value):
    """A dead channel of the teacher is left out; one of the student alone counts as 0; in both forms."""
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
    """docs/paper.md, departure 11. The unbiased estimator starts at 0."""
    x, y = (F.relu(normal(4, 8, 64, 80, seed=seed)) for seed in (0, 1))
    assert PatchCKALoss(variant="released").report([x], [y])[0]["intra"] > 0.8
    row = PatchCKALoss(estimator="unbiased").report([x], [y])[0]
    assert abs(row["intra"]) < 0.1
    assert row["intra_chance"] == 0.0
