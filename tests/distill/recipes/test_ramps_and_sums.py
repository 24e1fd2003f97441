"""Ramps and sums that a recipe names are those of the losses."""

import pytest
import torch

from cka_probe.distill import Outputs, RCKALoss
from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.losses.weight_schedules import ramp, set_progress
from cka_probe.distill.recipes.methods import build_loss


def test_a_ramp_of_a_recipe_is_the_ramp_of_the_loss():
    loss = build_loss("rcka", {"intra_weight": {"to": 15, "until": 0.5}, "inter_weight": 3})
    by_hand = RCKALoss(1, ramp(15, until=0.5), 3)
    generator = torch.Generator().manual_seed(0)
    sides = [Outputs(torch.randn(8, 5, generator=generator), (torch.randn(8, 6, generator=generator),)) for _ in "st"]
    for progress, weight in ((0.0, 0.0), (0.25, 7.5), (0.5, 15.0), (1.0, 15.0)):
        for one in (loss, by_hand):
            set_progress(one, progress)
        terms = loss.terms(*sides)
        plain = RCKALoss(1, 1, 1).terms(*sides)
        assert float(terms["intra"]) == pytest.approx(weight * float(plain["intra"]), rel=1e-6)
        assert float(terms["inter"]) == pytest.approx(3 * float(plain["inter"]), rel=1e-6)
        assert float(loss(*sides)) == float(by_hand(*sides))


def test_a_sum_of_a_recipe_adds_the_terms():
    generator = torch.Generator().manual_seed(0)
    sides = [Outputs(torch.randn(8, 5, generator=generator), (torch.randn(8, 6, generator=generator),)) for _ in "st"]
    both = build_loss("rcka+kd", {"rcka": {"intra_weight": 2}, "kd": {"weight": 0.5, "temperature": 2}})
    parts = RCKALoss(intra_weight=2)(*sides) + KDLoss(2, 0.5)(*sides)
    assert float(both(*sides)) == pytest.approx(float(parts), rel=1e-6)
    assert {"features", "intra", "inter", "kd"} <= set(both.terms(*sides))
