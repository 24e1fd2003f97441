"""Sums of losses: ``RCKALoss() + 0.5 * KDLoss()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .contract import DistillationLoss, Outputs, check_signature
from .weight_schedules import Weight

__all__ = ["SumOfLosses", "as_parts", "multiplied"]


class SumOfLosses(DistillationLoss):
    """The weighted sum of losses, as ``first + 0.5 * second`` makes it.

    Parameters
    ----------
    parts : sequence of (float or callable, DistillationLoss)
        Factor and loss of each part. A factor may be a schedule, such as `ramp`.

    Raises
    ------
    TypeError, ValueError
        If a factor is no weight.

    Notes
    -----
    It reads what one of its parts reads. Its terms are those of all parts, with their names; a name that an earlier
    part has too gets the name of its loss in front: "dist_intra" of `DISTLoss` beside "intra" of `RCKALoss`. Parameters
    of the parts are trained.

    Examples
    --------
    >>> import torch
    >>> from cka_probe.distill.baselines import DISTLoss, KDLoss
    >>> from cka_probe.distill.losses import LogitCKALoss
    >>> loss = LogitCKALoss() + 0.5 * KDLoss() + DISTLoss()
    >>> list(loss.terms(torch.randn(8, 5), torch.randn(8, 5)))
    ['intra', 'inter', 'kd', 'dist_inter', 'dist_intra']
    """

    def __init__(self, parts: Sequence[tuple[Weight, DistillationLoss]]) -> None:
        super().__init__()
        for number, (factor, _) in enumerate(parts):
            setattr(self, f"factor_{number}", self.checked_weight(f"factor_{number}", factor))
        self.parts = nn.ModuleList(part for _, part in parts)
        reads = {name for part in self.parts for name in part.reads}
        self.reads = tuple(name for name in ("logits", "features") if name in reads)

    @property
    def factors(self) -> tuple[Weight, ...]:
        """The factor of each part."""
        return tuple(getattr(self, f"factor_{number}") for number in range(len(self.parts)))

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Prepare all parts, as `FitNetLoss` needs it. Call it once, before the optimiser is built."""
        for part in self.parts:
            if hasattr(part, "prepare"):
                part.prepare(student_features, teacher_features)

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The terms of all parts, times their factors."""
        found: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            if not getattr(self, f"factor_{number}"):
                continue
            for name, term in part.terms(student, teacher, target).items():
                found[_free_name(name, part, found)] = self.weighted(f"factor_{number}", term)
        return found

    def __repr__(self) -> str:
        shown = ["" if factor == 1 else f"{factor!r} * " for factor in self.factors]
        names = [f"({part!r})" if isinstance(part, SumOfLosses) else repr(part) for part in self.parts]
        return " + ".join(factor + name for factor, name in zip(shown, names, strict=True))


class _Function(DistillationLoss):
    """A function (student, teacher, target), or a module with this call, as a part of a sum."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.reads = tuple(getattr(function, "reads", ("logits", "features")))
        if hasattr(function, "prepare"):
            self.prepare = function.prepare

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The terms of the function, or its value as the term "distillation"."""
        if hasattr(self.function, "terms"):
            return dict(self.function.terms(student, teacher, target))
        return {"distillation": self.function(student, teacher, target)}

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", None) or repr(self.function)


def as_parts(thing: Any) -> list[tuple[Weight, DistillationLoss]] | None:
    """A loss, or a function of (student, teacher, target), as the parts of a sum; None for anything else."""
    if isinstance(thing, SumOfLosses):
        return list(zip(thing.factors, thing.parts, strict=True))
    if isinstance(thing, DistillationLoss):
        return [(1.0, thing)]
    if callable(thing) and not isinstance(thing, type):
        check_signature(thing)
        return [(1.0, _Function(thing))]
    return None


def multiplied(factor: Weight, loss: DistillationLoss) -> SumOfLosses:
    """``factor * loss``; two numbers that multiply one loss become one."""
    if isinstance(loss, SumOfLosses) and len(loss.parts) == 1:
        (own,) = loss.factors
        if not callable(own) and not callable(factor):
            return SumOfLosses([(own * factor, loss.parts[0])])
    return SumOfLosses([(factor, loss)])


def _free_name(name: str, part: DistillationLoss, taken: dict[str, Tensor]) -> str:
    if name not in taken:
        return name
    wanted = f"{type(part).__name__.removesuffix('Loss').lower()}_{name}"
    number, free = 2, wanted
    while free in taken:
        free = f"{wanted}_{number}"
        number += 1
    return free
