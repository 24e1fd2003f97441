"""Check and prepare the settings and inputs of a loss; say why the CKA of a batch is not defined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...estimators.validation import check_estimator
from .deferred import raise_if

__all__ = [
    "check_classes",
    "check_defined",
    "check_levels",
    "check_samples",
    "check_target",
    "feature_pairs",
    "floating_logits",
    "in_one_dtype",
    "logit_pair",
    "positive",
    "unit_rows",
]


def positive(name: str, value: float) -> float:
    """Return ``value`` as a float.

    Raises
    ------
    ValueError
        If it is not above 0; the message calls it ``name``.
    """
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}.")
    return float(value)


def logit_pair(
    student_logits: Tensor | None, teacher_logits: Tensor | None, loss: str, *, tokens: bool = False
) -> tuple[Tensor, Tensor]:
    """Check the logits of both networks; return them in one dtype, the teacher's detached.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor (B, classes)
        Before the softmax.
    loss : str
        Name of the loss, for the messages.
    tokens : bool
        Whether logits of tokens (B, T, classes) will do too.

    Returns
    -------
    tuple of Tensor
        Both of the given shape, float32 or float64.

    Raises
    ------
    TypeError
        If the logits are no floating tensors.
    ValueError
        If logits are missing or not matrices, or differ in samples or classes.
    """
    x, y = (
        floating_logits(logits, owner, loss)
        for logits, owner in ((student_logits, "student"), (teacher_logits, "teacher"))
    )
    for logits, owner in ((x, "student"), (y, "teacher")):
        if logits.ndim != 2 and not (tokens and logits.ndim == 3):
            shapes = "(B, classes), or of tokens (B, T, classes)" if tokens else "(B, classes)"
            raise ValueError(f"The {owner}'s logits must have shape {shapes}, got {tuple(logits.shape)}.")
    if x.shape != y.shape:
        raise ValueError(
            f"The student's logits have shape {tuple(x.shape)} and the teacher's {tuple(y.shape)}. Both networks must "
            "see the same samples and have the same classes."
        )
    student, teacher = in_one_dtype(x, y.detach())
    return student, teacher


def floating_logits(logits: Tensor | None, owner: str, loss: str) -> Tensor:
    """Return the logits of one network; raise an error if they are missing or no floating tensor.

    Parameters
    ----------
    logits : Tensor or None
        Of any shape.
    owner : "student" or "teacher"
        Whose they are, for the messages.
    loss : str
        Name of the loss, for the messages.

    Raises
    ------
    ValueError
        If they are missing.
    TypeError
        If they are no floating tensor.
    """
    if logits is None:
        raise ValueError(f"{loss} compares logits, but the {owner} has none. Pass Outputs(logits=tensor).")
    return _floating(logits, f"The {owner}'s logits")


def feature_pairs(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], loss: str
) -> list[tuple[Tensor, Tensor]]:
    """Check the features of both networks; return them as pairs in one dtype, the teacher's detached.

    Parameters
    ----------
    student_features, teacher_features : sequence of Tensor (B, ...)
        Activations of the tapped layers; student and teacher are compared pair by pair.
    loss : str
        Name of the loss, for the messages.

    Returns
    -------
    list of tuple of Tensor
        (student's feature, teacher's feature), with their shapes.

    Raises
    ------
    TypeError
        If a sequence is a single tensor, or an entry no floating tensor.
    ValueError
        If there are no features, the sequences differ in length, or a pair differs in its number of samples.
    """
    for features, owner in ((student_features, "student"), (teacher_features, "teacher")):
        if isinstance(features, Tensor):
            raise TypeError(
                f"The {owner}'s features must be a tuple of tensors, one for each layer, got a single tensor. Put "
                "it in a tuple."
            )
    if not student_features and not teacher_features:
        raise ValueError(
            f"{loss} compares features, but got none. Pass Outputs(features=(tensor, ...)); in distill(), name layers "
            "with student_layers= and teacher_layers=."
        )
    if len(student_features) != len(teacher_features):
        raise ValueError(
            f"Features are compared pair by pair, but the student has {len(student_features)} and the teacher "
            f"{len(teacher_features)}."
        )
    pairs = []
    for index, (x, y) in enumerate(zip(student_features, teacher_features, strict=True)):
        for feature, owner in ((x, "student"), (y, "teacher")):
            _floating(feature, f"The {owner}'s feature {index}")
            if feature.ndim < 2:
                raise ValueError(
                    f"The {owner}'s feature {index} must have shape (B, ...) with at least two axes, got "
                    f"{tuple(feature.shape)}."
                )
        if x.shape[0] != y.shape[0]:
            raise ValueError(
                f"Feature {index} has {x.shape[0]} samples in the student and {y.shape[0]} in the teacher. Both must "
                "see the same batch, with the samples on the first axis."
            )
        x, y = in_one_dtype(x, y.detach())
        pairs.append((x, y))
    return pairs


def check_target(target: Any, logits: Tensor, loss: str) -> Tensor:
    """Check that the target holds one class for each row of the logits (B, classes); return it, clamped to the classes.

    Raises
    ------
    TypeError
        If it is no tensor of integers.
    ValueError
        If its shape is not (B,), or a class is out of range; when, `deferred` says.
    """
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"{loss} needs class indices as a tensor of integers (B,), got {kind}.")
    if target.shape != logits.shape[:1]:
        raise ValueError(
            f"{loss} needs one class for each of the {logits.shape[0]} samples, got a target of shape "
            f"{tuple(target.shape)}."
        )
    classes, labels = logits.shape[1], target.detach()

    def error(range_of_target: Sequence[int]) -> ValueError:
        low, high = range_of_target
        return ValueError(
            f"{loss}: the target holds classes from {low} to {high}, but the logits have {classes} classes, 0 to "
            f"{classes - 1}."
        )

    raise_if(((labels < 0) | (labels >= classes)).any(), lambda: torch.stack(labels.aminmax()), error)
    # In range, because the error comes at the end of the step.
    return target.long().clamp(0, classes - 1)


def _floating(tensor: Any, what: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(tensor).__name__}.")
    if not tensor.is_floating_point():
        raise TypeError(f"{what} must be floating, got {tensor.dtype}.")
    return tensor


def in_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors to one dtype: float64 if any is float64, else float32.

    Parameters
    ----------
    *tensors : Tensor
        Real floating tensors.

    Returns
    -------
    list of Tensor
        In the same order.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return [tensor.to(torch.float64 if wide else torch.float32) for tensor in tensors]


def unit_rows(x: Tensor) -> Tensor:
    """Scale the rows (last axis) to Euclidean norm 1, at any scale; a zero row stays zero and gets no gradient."""
    # Dividing by the largest entry keeps the squares in range. The factor cancels below, so it needs no gradient.
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    squares = x.square().sum(-1, keepdim=True)
    return x / torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt()


def check_samples(samples: int, estimator: str) -> None:
    """Raise ValueError if the batch has too few samples for the estimator."""
    minimum = check_estimator(estimator)
    if samples < minimum:
        raise ValueError(
            f"There are {samples} samples in the batch, but the {estimator} CKA needs at least {minimum}. Use larger "
            "batches (drop_last=True leaves out a small last one)"
            + (', or estimator="biased".' if minimum == 4 else ".")
        )


def check_classes(classes: int, estimator: str) -> None:
    """Raise ValueError if there are too few classes to align."""
    minimum = max(3, check_estimator(estimator))  # the centred CKA of two classes is 1 for any logits
    if classes < minimum:
        raise ValueError(
            f"The inter term aligns classes and needs at least {minimum} ({estimator}), but the logits have {classes}. "
            "Set inter_weight=0."
        )


def check_defined(value: Tensor, x: Tensor, y: Tensor, what: str, measure: str = "CKA") -> None:
    """Raise ValueError with the reason if the ``value`` of features x and y is NaN; when, `deferred` says."""
    sides = (x.detach(), y.detach())
    # What the error holds stays in memory until a GPU has answered: shapes, no features.
    shapes = ((tuple(x.shape), "student"), (tuple(y.shape), "teacher"))

    def facts() -> Tensor:
        """Whether each side is finite, and whether each is constant."""
        ranges = [torch.aminmax(side, dim=0) for side in sides]
        largest = [torch.maximum(low.abs(), high.abs()).amax() for low, high in ranges]
        spread = [(high - low).amax() for low, high in ranges]
        finite = [torch.isfinite(size) for size in largest]
        return torch.stack([*finite, *(s <= 1e-5 * size for s, size in zip(spread, largest, strict=True))])

    def error(known: Sequence[int]) -> ValueError:
        for finite, (shape, owner) in zip(known[:2], shapes, strict=True):
            if not finite:
                return ValueError(
                    f"The {owner}'s {what}, shape {shape}, hold NaN or infinity. Lower the learning rate, or "
                    "train in bf16 or float32 if they overflow in fp16."
                )
        for constant, (shape, owner) in zip(known[2:], shapes, strict=True):
            if constant:
                return ValueError(
                    f"The {owner}'s {what}, shape {shape}, are constant over the batch, so their {measure} is not "
                    "defined. Is the layer dead, or are its weights all zero? Tap another layer, start from random "
                    "weights, or set the weight of this term to 0."
                )
        reason = (
            "one of them has a zero row, has no spread beyond rounding, or more than half of its samples coincide "
            "(median bandwidth). Use another kernel or layer."
            if measure == "CKA"
            else "without the means over samples and over classes, nothing but rounding is left of one of them."
        )
        return ValueError(f"The {measure} of the student's and the teacher's {what} is not defined: {reason}")

    raise_if(value.isnan(), facts, error)


def check_levels(levels: Sequence[tuple[Tensor, Tensor, Tensor, int]]) -> None:
    """Raise ValueError with the reason if the alignment of a pyramid level is NaN; when, `deferred` says.

    Parameters
    ----------
    levels : sequence of (value, student's map, teacher's map, number of the level)
        Mean alignments with the maps that they compare.
    """
    for value, x, y, index in levels:
        _check_level(value, x.detach(), y.detach(), index)


def _check_level(value: Tensor, x: Tensor, y: Tensor, index: int) -> None:
    shapes = (tuple(x.shape), tuple(y.shape))

    def error(finite: Sequence[int]) -> ValueError:
        for known, shape, owner in zip(finite, shapes, ("student", "teacher"), strict=True):
            if not known:
                return ValueError(
                    f"The {owner}'s level {index}, shape {shape}, holds NaN or infinity. Lower the learning "
                    "rate, or train in bf16 or float32 if it overflows in fp16."
                )
        return ValueError(
            f"The teacher's level {index}, shape {shapes[1]}, is constant over its patches in every slice, so the "
            "student has nothing to align with. Is the layer dead? Tap another one."
        )

    raise_if(
        value.isnan(), lambda: torch.stack([torch.linalg.vector_norm(z, torch.inf).isfinite() for z in (x, y)]), error
    )
