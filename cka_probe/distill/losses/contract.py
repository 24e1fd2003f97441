"""The contract of the distillation losses, and the checks of their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...capture.trees import tensors
from .gather import batch_sizes, gather_batch

__all__ = [
    "DistillationLoss",
    "Outputs",
    "check_signature",
    "feature_pairs",
    "gathered",
    "in_one_dtype",
    "logit_pair",
    "matrix",
    "not_negative",
    "positive",
    "unit_rows",
]

EXAMPLE = "loss(Outputs(student_logits, (student_feature,)), Outputs(teacher_logits, (teacher_feature,)), target)"


class Outputs(NamedTuple):
    """What a network says about a batch of B samples.

    Examples
    --------
    >>> import torch
    >>> outputs = Outputs(torch.zeros(8, 10), (torch.zeros(8, 16, 4, 4),))
    >>> outputs.logits.shape, len(outputs.features), outputs.mask
    (torch.Size([8, 10]), 1, None)
    """

    logits: Tensor | None = None
    """Class scores before the softmax, (B, classes) or (B, classes, H, W)."""
    features: tuple[Tensor, ...] = ()
    """Activations of the tapped layers, (B, ...) each."""
    mask: Tensor | None = None
    """True or 1 for the real tokens, (B, T), if the input has padding."""

    def in_float32(self) -> Outputs:
        """The same outputs with logits and features in float32."""
        logits = None if self.logits is None else self.logits.float()
        return Outputs(logits, tuple(feature.float() for feature in self.features), self.mask)


class DistillationLoss(nn.Module):
    """A loss that compares a student with its teacher: the sum of its weighted terms.

    A subclass says in ``reads`` what it compares, and defines `compute_terms`. The teacher gets no gradient. Losses
    compute in float32, or in float64 for float64 inputs, under autocast too.
    """

    reads: tuple[str, ...] = ("logits", "features")
    """What the loss compares: ("logits",), ("features",) or both."""

    def terms(
        self,
        student: Outputs | Tensor | Sequence[Tensor],
        teacher: Outputs | Tensor | Sequence[Tensor],
        target: Tensor | None = None,
        *more: object,
    ) -> dict[str, Tensor]:
        """The weighted terms by name. A term with weight 0 is left out where this saves work.

        Parameters
        ----------
        student, teacher : Outputs, Tensor or sequence of Tensor
            Outputs of the two networks for the same samples. A loss of logits also takes bare logits; a loss of
            features also takes one feature, or a sequence of them.
        target : Tensor (B,), optional
            Class labels.
        *more : object
            Refused: the arguments of a call in the form of version 0.1.

        Returns
        -------
        dict of str to Tensor
            Scalars, without the cross-entropy with the labels, which `distill` adds.

        Raises
        ------
        TypeError
            If an argument is of the wrong kind, or logits or features are no floating tensors.
        ValueError
            If logits or features are missing, or do not fit together, or the loss of the batch is not defined.
        """
        if more:
            raise TypeError(
                f"{type(self).__name__} takes three arguments, (student, teacher, target), but was called with "
                f"{3 + len(more)}. Call {EXAMPLE}."
            )
        student, teacher = self._outputs(student, "student"), self._outputs(teacher, "teacher")
        first = next(tensors((student, teacher)), None)
        # Products in half precision would make CKA NaN, or wrong by 1e-3.
        with nullcontext() if first is None else torch.autocast(first.device.type, enabled=False):
            return self.compute_terms(student, teacher, target)

    def forward(
        self,
        student: Outputs | Tensor | Sequence[Tensor],
        teacher: Outputs | Tensor | Sequence[Tensor],
        target: Tensor | None = None,
        *more: object,
    ) -> Tensor:
        """The sum of `terms`, a scalar; 0 without terms. The arguments are those of `terms`."""
        terms = self.terms(student, teacher, target, *more)
        return torch.stack(list(terms.values())).sum() if terms else torch.zeros(())

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms by name; `terms` calls this with `Outputs` and without autocast."""
        raise NotImplementedError(f"{type(self).__name__} does not define `compute_terms`.")

    def _outputs(self, given: Any, owner: str) -> Outputs:
        """One network's side as `Outputs`, from a bare tensor too if the loss reads one kind of output."""
        if isinstance(given, Outputs):
            return given
        name, kind = type(self).__name__, type(given).__name__
        if len(self.reads) > 1:
            raise TypeError(
                f"{name} compares logits and features: the {owner}'s must be Outputs, got {kind}. Call {EXAMPLE}."
            )
        if isinstance(given, Tensor):
            return Outputs(given) if self.reads == ("logits",) else Outputs(features=(given,))
        if self.reads == ("logits",):
            raise TypeError(
                f"{name} compares logits: the {owner}'s must be a tensor or Outputs(logits=tensor), got {kind}."
            )
        if isinstance(given, list | tuple):
            return Outputs(features=tuple(given))
        raise TypeError(
            f"{name} compares features: the {owner}'s must be a tensor, a list of tensors or "
            f"Outputs(features=(tensor, ...)), got {kind}."
        )


def check_signature(loss: Callable[..., Any]) -> None:
    """Raise TypeError if a loss has the five arguments of version 0.1 instead of (student, teacher, target).

    Parameters
    ----------
    loss : module or callable
        With ``terms`` or without. A signature that Python cannot read is accepted.
    """
    function = getattr(loss, "terms", None) or (loss.forward if isinstance(loss, nn.Module) else loss)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    former = {"student_features", "teacher_features"} & {p.name for p in parameters}
    if len(needed) > 3 or former:
        name = getattr(function, "__qualname__", type(loss).__name__)
        raise TypeError(
            f"`loss`: {name} has the arguments ({', '.join(p.name for p in parameters)}), but a loss takes three: "
            "(student, teacher, target=None). student and teacher are Outputs: read student.logits, student.features "
            "and student.mask."
        )


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


def in_one_dtype(*tensors: Tensor) -> list[Tensor]:
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


def logit_pair(student_logits: Tensor | None, teacher_logits: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits of the same samples and classes, in full precision, the teacher's detached.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor (B, classes)
        Before the softmax.
    loss : str
        Name of the loss, for the messages.

    Returns
    -------
    tuple of Tensor
        Both (B, classes), float32 or float64.

    Raises
    ------
    TypeError
        If one is no floating tensor.
    ValueError
        If one is missing, they are not matrices, or they differ in samples or classes.
    """
    for logits, owner in ((student_logits, "student"), (teacher_logits, "teacher")):
        if logits is None:
            raise ValueError(f"{loss} compares logits, but the {owner} has none. Pass Outputs(logits=tensor).")
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
    student, teacher = in_one_dtype(x, y.detach())
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
