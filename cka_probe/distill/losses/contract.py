"""The contract of all distillation losses, and the checks of what they are given.

``loss(student_logits, teacher_logits, student_features, teacher_features, target=None)`` is a scalar, the sum of
``loss.terms(...)`` with the same arguments. Every loss takes all five, and uses what it needs. The teacher's side
carries no gradient. Everything is computed in float32 (float64 for float64 inputs), also inside autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .gather import batch_sizes, gather_batch

__all__ = [
    "DistillationLoss",
    "feature_pairs",
    "full_precision",
    "gathered",
    "in_full_precision",
    "logit_pair",
    "matrix",
    "not_negative",
    "positive",
    "unit_rows",
]

Terms = TypeVar("Terms", bound=Callable[..., dict[str, Tensor]])


class DistillationLoss(nn.Module):
    """A loss that is the sum of its weighted terms. A subclass defines `terms`."""

    def terms(
        self,
        student_logits: Tensor | None,
        teacher_logits: Tensor | None,
        student_features: Sequence[Tensor] = (),
        teacher_features: Sequence[Tensor] = (),
        target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted terms by name, each a scalar.

        Parameters
        ----------
        student_logits, teacher_logits : Tensor (B, classes) or None
            Before the softmax; None is enough for a loss of features alone.
        student_features, teacher_features : sequence of Tensor (B, ...)
            Activations of the tapped layers, pair by pair.
        target : Tensor (B,), optional
            Class labels.

        Returns
        -------
        dict of str to Tensor
            Without the cross-entropy with the labels, which `distill` adds.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `terms`.")

    def forward(
        self,
        student_logits: Tensor | None,
        teacher_logits: Tensor | None,
        student_features: Sequence[Tensor] = (),
        teacher_features: Sequence[Tensor] = (),
        target: Tensor | None = None,
    ) -> Tensor:
        """The sum of `terms`, a scalar; 0 without terms."""
        terms = self.terms(student_logits, teacher_logits, student_features, teacher_features, target)
        return torch.stack(list(terms.values())).sum() if terms else torch.zeros(())


def in_full_precision(terms: Terms) -> Terms:
    """The same method with autocast switched off, so that no product inside it is taken in half precision."""

    @functools.wraps(terms)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        tensors = (tensor for value in (*args, *kwargs.values()) for tensor in _tensors(value))
        first = next(tensors, None)
        if first is None:
            return terms(self, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return terms(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (entry for entry in value if isinstance(entry, Tensor))


def unit_rows(x: Tensor) -> Tensor:
    """Rows (the last axis) of Euclidean norm 1, whatever their scale; a row of zeros stays one, without gradient."""
    # A factor without gradient keeps squares in range; it cancels in the next line.
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    squares = x.square().sum(-1, keepdim=True)
    return x / torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt()


def not_negative(name: str, value: float) -> float:
    """``value`` as a float.

    Raises
    ------
    ValueError
        If it is negative or NaN; the message calls it ``name``.
    """
    if not value >= 0:
        raise ValueError(f"`{name}` must not be negative, got {value!r}.")
    return float(value)


def positive(name: str, value: float) -> float:
    """``value`` as a float.

    Raises
    ------
    ValueError
        If it is not above 0; the message calls it ``name``.
    """
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}.")
    return float(value)


def full_precision(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one dtype: float64 when one is float64, else float32 (half precision too).

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


def logit_pair(student_logits: Tensor | None, teacher_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits of the same samples and classes, in full precision, the teacher's detached.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor (B, classes)
        Before the softmax.

    Returns
    -------
    tuple of Tensor
        Both (B, classes), float32 or float64.

    Raises
    ------
    TypeError
        If one is no floating tensor.
    ValueError
        If they are not matrices, or differ in samples or classes.
    """
    x = _floating(student_logits, "The student's logits")
    y = _floating(teacher_logits, "The teacher's logits")
    for logits, owner in ((x, "student"), (y, "teacher")):
        if logits.ndim != 2:
            raise ValueError(f"The {owner}'s logits must have shape (B, classes), got {tuple(logits.shape)}.")
    if x.shape != y.shape:
        raise ValueError(
            f"The student's logits have shape {tuple(x.shape)} and the teacher's {tuple(y.shape)}. Both networks must "
            "see the same samples and have the same classes."
        )
    student, teacher = full_precision(x, y.detach())
    return student, teacher


def feature_pairs(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], loss: str
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of activations of the same samples in full precision, the teacher's detached; shapes as they came.

    Parameters
    ----------
    student_features, teacher_features : sequence of Tensor (B, ...)
        One activation for each tapped layer, pair by pair.
    loss : str
        Who asks, for the messages.

    Returns
    -------
    list of tuple of Tensor
        (student's, teacher's).

    Raises
    ------
    TypeError
        If a list is a tensor, or an entry no floating tensor.
    ValueError
        If the lists are empty or of different length, or a pair differs in its samples.
    """
    for features, owner in ((student_features, "student_features"), (teacher_features, "teacher_features")):
        if isinstance(features, Tensor):
            raise TypeError(f"`{owner}` must be a list of tensors, one for each layer, got a single tensor.")
    if not student_features and not teacher_features:
        raise ValueError(
            f"{loss} compares features, but got none. Name layers with student_layers= and teacher_layers= "
            "in distill()."
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
        x, y = full_precision(x, y.detach())
        pairs.append((x, y))
    return pairs


def matrix(feature: Tensor) -> Tensor:
    """An activation (B, ...) as a matrix (B, d)."""
    return feature.flatten(1)


def gathered(pairs: Sequence[tuple[Tensor, Tensor]], gather: bool) -> list[tuple[Tensor, Tensor]]:
    """The pairs over the global batch under torch.distributed when ``gather`` is true; otherwise as they are.

    Parameters
    ----------
    pairs : sequence of tuple of Tensor (B, ...)
        All of the same B.
    gather : bool
        Whether to gather.

    Returns
    -------
    list of tuple of Tensor
        Gradients flow back to the process of each sample.
    """
    if not gather or not pairs:
        return list(pairs)
    sizes = batch_sizes(*(tensor for pair in pairs for tensor in pair))
    return [(gather_batch(x, sizes), gather_batch(y, sizes)) for x, y in pairs]


def _floating(tensor: Tensor | None, what: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(tensor).__name__}.")
    if not tensor.is_floating_point():
        raise TypeError(f"{what} must be floating, got {tensor.dtype}.")
    return tensor
