"""Whether the CKA of a batch is defined, and if not, a message that says why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...estimators.validation import check_estimator

__all__ = ["check_classes", "check_defined", "check_levels", "check_samples"]


def check_samples(samples: int, estimator: str) -> None:
    """Nothing, or a ValueError when the batch has too few samples for the estimator."""
    minimum = check_estimator(estimator)
    if samples < minimum:
        raise ValueError(
            f"There are {samples} samples in the batch, but the {estimator} CKA needs at least {minimum}. Use larger "
            "batches (drop_last=True leaves out a small last one)"
            + (', or estimator="biased".' if minimum == 4 else ".")
        )


def check_classes(classes: int, estimator: str) -> None:
    """Nothing, or a ValueError when there are too few classes to align."""
    minimum = max(3, check_estimator(estimator))  # with two, the centred CKA is 1 whatever the logits
    if classes < minimum:
        raise ValueError(
            f"The inter term aligns classes and needs at least {minimum} ({estimator}), but the logits have {classes}. "
            "Set inter_weight=0."
        )


def check_defined(value: Tensor, x: Tensor, y: Tensor, what: str) -> None:
    """Nothing, or an error that says why the alignment of these features is not defined; waits for a GPU once."""
    if not bool(torch.isnan(value.detach())):
        return
    for side, owner in ((x, "student"), (y, "teacher")):
        side = side.detach()
        if not bool(torch.isfinite(side).all()):
            raise ValueError(
                f"The {owner}'s {what}, shape {tuple(side.shape)}, hold NaN or infinity. Lower the learning rate, or "
                "train in bf16 or float32 if they overflow in fp16."
            )
    for side, owner in ((x, "student"), (y, "teacher")):
        side = side.detach()
        if bool((side - side[:1]).abs().amax() <= 1e-5 * side.abs().amax()):
            raise ValueError(
                f"The {owner}'s {what}, shape {tuple(side.shape)}, are constant over the batch, so their CKA is not "
                "defined. Is the layer dead, or are its weights all zero? Tap another layer, initialise it with random "
                "weights, or set this term's weight to 0."
            )
    raise ValueError(
        f"The CKA of student's and teacher's {what} is not defined: a side has a zero row or no spread beyond "
        "rounding, or more than half of its samples coincide (median bandwidth). Use another kernel or "
        "layer."
    )


def check_levels(levels: Sequence[tuple[Tensor, Tensor, Tensor, int]]) -> None:
    """Nothing, or an error that says why the first value of NaN is not defined; waits for a GPU once.

    Parameters
    ----------
    levels : sequence of (value, student's map, teacher's map, number of the level)
        Mean alignments and what they are of.
    """
    if not levels or not bool(torch.stack([value.detach() for value, *_ in levels]).isnan().any()):
        return
    _, x, y, index = next(level for level in levels if bool(level[0].isnan()))
    for level, owner in ((x, "student"), (y, "teacher")):
        if not bool(torch.isfinite(level.detach()).all()):
            raise ValueError(
                f"The {owner}'s level {index}, shape {tuple(level.shape)}, holds NaN or infinity. Lower the learning "
                "rate, or train in bf16 or float32 if it overflows in fp16."
            )
    raise ValueError(
        f"The teacher's level {index}, shape {tuple(y.shape)}, is constant over its patches in every slice, so there "
        "is nothing to align with. Is the layer dead? Tap another one."
    )
