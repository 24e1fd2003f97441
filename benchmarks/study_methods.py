"""The methods of the study (benchmarks/study.py): each is a loss, made for a weight, with or without a ramp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cka_probe.distill import FeatureCKALoss, LogitCKALoss, RCKALoss, SignLoss, ramp
from cka_probe.distill.baselines import DISTLoss, DKDLoss, KDLoss, SPLoss
from cka_probe.distill.losses.contract import DistillationLoss

__all__ = ["METHODS", "RAMP_UNTIL", "Method"]

RAMP_UNTIL = 0.5
"""Share of the steps after which a ramp has reached the full weight."""


class Method(NamedTuple):
    """``make(weight)`` is the loss at its full weight; ``weights`` are those of the study, the first is the usual one.

    ``default`` is the weight that the main rows have; ``ramp`` says whether the ramp is tried; ``ce_weight`` is the
    weight of the cross-entropy.
    """

    title: str
    make: Callable[[float], DistillationLoss] | None
    weights: tuple[float, ...] = (1.0,)
    default: float = 1.0
    ramp: bool = False
    ce_weight: float = 1.0
    features: bool = False


def _rcka(weight: float, **options: float) -> DistillationLoss:
    return RCKALoss(feature_weight=1, intra_weight=weight, inter_weight=weight, **options)


def _even(weight: float) -> DistillationLoss:
    return RCKALoss(feature_weight=weight, intra_weight=weight, inter_weight=weight)


def _crossfade(weight: float) -> DistillationLoss:
    return ramp(0.0, start=1.0, until=RAMP_UNTIL) * KDLoss() + ramp(1.0, until=RAMP_UNTIL) * _rcka(weight)


CKA_WEIGHTS, OTHER_WEIGHTS = (1.0, 3.0, 15.0), (1 / 3, 1.0, 3.0)
_cka = partial(Method, weights=CKA_WEIGHTS, ramp=True)
# All terms have the weight, the features too. With 1 they are RCKA 1 and RCKA + signs 1, which are there.
_even_cka = partial(_cka, weights=CKA_WEIGHTS[1:], default=15.0, features=True)

# The weight of a baseline multiplies the weights that its authors publish; that of FCKA, LCKA and RCKA is the weight of
# features (FCKA) or of intra and inter (LCKA, RCKA).
METHODS: dict[str, Method] = {
    "ce": Method("CE", None),
    "kd": Method("KD", lambda w: KDLoss(weight=0.9 * w), OTHER_WEIGHTS, ce_weight=0.1),
    "dkd": Method("DKD", lambda w: DKDLoss(alpha=w, beta=8 * w), OTHER_WEIGHTS),
    "dist": Method("DIST", lambda w: DISTLoss(beta=w, gamma=w), OTHER_WEIGHTS),
    "sp": Method("SP", lambda w: SPLoss(weight=3000 * w), OTHER_WEIGHTS, features=True),
    "fcka": _cka("FCKA", lambda w: FeatureCKALoss(weight=w), features=True),
    "lcka": _cka("LCKA", lambda w: LogitCKALoss(w, w), default=3.0),
    "rcka": _cka("RCKA", _rcka, default=3.0, features=True),
    "kd_rcka": _cka("KD + RCKA", lambda w: KDLoss() + _rcka(w), default=3.0, ce_weight=0.1, features=True),
    # Attempts to do better than the paper; each name says what is added.
    "rcka_signs": _cka("RCKA + signs", lambda w: _rcka(w) + SignLoss(w), default=3.0, features=True),
    "rcka_even": _even_cka("RCKA, all terms", _even),
    "rcka_even_signs": _even_cka("RCKA, all terms + signs", lambda w: _even(w) + SignLoss(w)),
    "rcka_soft": _cka("RCKA, softened", partial(_rcka, temperature=4.0), default=3.0, features=True),
    "kd_to_rcka": Method("KD, then RCKA", _crossfade, CKA_WEIGHTS, 15.0, features=True),
}
