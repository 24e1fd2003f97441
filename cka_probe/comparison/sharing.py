"""Notes about networks of one comparison that are one object, or share weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields
from itertools import combinations

from torch import nn

from ..similarity.matrix import SimilarityMatrix

__all__ = ["sharing_notes", "with_notes"]


def sharing_notes(models: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """One note for each pair of networks that are the same object, have parameters in common, or contain each other.

    Parameters
    ----------
    models : sequence of (str, torch.nn.Module)
        Name and network, without wrappers.

    Examples
    --------
    >>> part = nn.Linear(2, 2)
    >>> sharing_notes([("a", part), ("b", nn.Sequential(part, nn.Linear(2, 2)))])[0].partition(":")[0]
    "a and b share 2 of their 2 and 4 parameters, such as 'weight' of a, and a is a part of b"
    """
    parameters = [_parameters(model) for _, model in models]
    notes = []
    for i, j in combinations(range(len(models)), 2):
        (name_x, x), (name_y, y) = models[i], models[j]
        if x is y:
            notes.append(
                f"{name_x} and {name_y} are one and the same network, so all their values are equal. If they should "
                "differ, copy the network (copy.deepcopy) before it changes"
            )
            continue
        common = [path for key, path in parameters[i].items() if key in parameters[j]]
        part = _part(name_x, x, name_y, y)
        facts = []
        if common:
            counts = f"{len(common)} of their {len(parameters[i])} and {len(parameters[j])} parameters"
            facts.append(f"{name_x} and {name_y} share {counts}, such as {common[0]!r} of {name_x}")
        if part:
            facts.append(part)
        if facts:
            notes.append(
                f"{', and '.join(facts)}: is one a wrapper of the other? Adapters such as PEFT change the network that "
                "they are given; to compare with the network as it was, copy it first (copy.deepcopy). If they share "
                "this part on purpose, the values are right"
            )
    return notes


def _parameters(model: nn.Module) -> dict[Hashable, str]:
    """Path of each parameter by its memory, or by its identity if it has none."""
    return {
        id(p) if p.is_meta or not p.numel() else (p.device, p.data_ptr(), p.shape): path
        for path, p in model.named_parameters()
    }


def _part(name_x: str, x: nn.Module, name_y: str, y: nn.Module) -> str:
    if any(module is x for module in y.modules()):
        return f"{name_x} is a part of {name_y}"
    if any(module is y for module in x.modules()):
        return f"{name_y} is a part of {name_x}"
    return ""


def with_notes(result: SimilarityMatrix, notes: Sequence[str]) -> SimilarityMatrix:
    """The result with these notes before its own."""
    if not notes:
        return result
    parts = {field.name: getattr(result, field.name) for field in fields(result)}
    return SimilarityMatrix(**{**parts, "notes": [*notes, *result.notes]})
