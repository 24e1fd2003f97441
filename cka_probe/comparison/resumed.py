"""Whether a resumed comparison computes what the earlier run computed, by the batch that both ran first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..capture.recorder import LayerRecorder
from .request import Request

__all__ = [
    "LIMIT",
    "LOOSE_LIMIT",
    "NOISE",
    "FirstBatchError",
    "first_batch_note",
    "in_half_precision",
    "marks_note",
]

LIMIT, LOOSE_LIMIT = 1e-3, 3e-2
"""Largest change of a value, or relative change of HSIC, that another machine may cause; the second in half precision.

A network with another setting, or another version of a library, mostly changes more."""

NOISE = 1e-5
"""Changes up to this are usual on a GPU, where two runs of one network may differ in rounding."""


class FirstBatchError(ValueError):
    """A resumed run computes something else than the earlier one; the text follows the name of its file."""


def first_batch_note(
    before: Mapping[str, torch.Tensor],
    now: Mapping[str, torch.Tensor],
    sides: Sequence[Sequence[tuple[str, str]]],
    *,
    exact: bool,
    loose: bool,
) -> str | None:
    """Compare the sums of the first batch of two runs.

    Parameters
    ----------
    before, now : mapping of str to tensor
        "cross" (rows, columns), "self_x" (rows, 1) and "self_y" (1, columns) of ``MinibatchCKA``.
    sides : two sequences of (str, str)
        Model and layer of each row and column.
    exact : bool
        Whether the same machine gives the same bits, as a CPU does.
    loose : bool
        Whether the network runs in half precision.

    Returns
    -------
    str or None
        A note if the runs differ by rounding.

    Raises
    ------
    FirstBatchError
        If they differ by more. The message names the layer that differs most.
    """
    if not before or all(torch.equal(before[key].nan_to_num(), now[key].nan_to_num()) for key in now):
        return None
    worst, model, layer = 0.0, *sides[0][0]
    for side, key in zip(sides, ("self_x", "self_y"), strict=True):
        old, new = before[key].ravel(), now[key].ravel()
        change = _size((new - old) / torch.maximum(old.abs(), new.abs()).clamp(min=1e-300))
        place = int(change.argmax())
        if float(change[place]) > worst:
            worst, (model, layer) = float(change[place]), side[place]
    change = _size(_values(now) - _values(before))
    if float(change.max()) > worst:
        worst = float(change.max())
        model, layer = sides[0][int(change.max(1).values.argmax())]
    return verdict(worst, model, layer, exact=exact, loose=loose)


def verdict(worst: float, model: str, layer: str, *, exact: bool, loose: bool) -> str | None:
    """The note on, or the error for, a first batch of which ``layer`` differs most, by ``worst``; as above."""
    if worst > (LOOSE_LIMIT if loose else LIMIT):
        raise FirstBatchError(
            f"cannot be resumed: on the first batch, {layer!r} of {model} gives other values than before the "
            "interruption. A setting of the network, its hooks, the code that it calls, or the version of a library is "
            "another. To start again, delete the file."
        )
    if not exact and worst <= NOISE:
        return None
    return (
        f"resumed on another machine, with another number of threads or other versions: the first batch, run again, "
        f"gave values up to {worst:.0e} away from those before. So the last digits are not those of a run without an "
        "interruption"
    )


def marks_note(
    before: Mapping[tuple[str, str], tuple[float, float]],
    now: Mapping[tuple[str, str], tuple[float, float]],
    *,
    exact: bool,
    loose: bool,
) -> str | None:
    """Compare the features of the first batch of two runs, as ``first_batch_note``.

    Parameters
    ----------
    before, now : mapping of (str, str) to (float, float)
        By model and layer the norm of the features, and their sum divided by the root of their number.
    exact, loose : bool
        As in ``first_batch_note``.
    """
    worst, where = 0.0, ("", "")
    for key in before.keys() & now.keys():
        (norm, mean), (norm_now, mean_now) = before[key], now[key]
        change = max(abs(norm_now - norm), abs(mean_now - mean)) / max(norm, norm_now, 1e-300)
        if change > worst:
            worst, where = change, key
    return None if not worst else verdict(worst, *where, exact=exact, loose=loose)


def in_half_precision(recorders: Sequence[LayerRecorder], request: Request) -> bool:
    """Whether one of the networks runs in half precision."""
    halves = (torch.float16, torch.bfloat16)
    return request.autocast is not None or any(w.dtype in halves for r in recorders for w in r.model.parameters())


def _values(sums: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return sums["cross"] / sums["self_x"].clamp(min=1e-150).sqrt() / sums["self_y"].clamp(min=1e-150).sqrt()


def _size(change: torch.Tensor) -> torch.Tensor:
    """Magnitudes; infinite where one of the two values was NaN."""
    return change.abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
