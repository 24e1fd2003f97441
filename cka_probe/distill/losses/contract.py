"""The contract of the distillation losses: what they are given, what they return, and how they add up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...capture.trees import tensors
from .deferred import asked_together
from .weight_schedules import Weight, checked_weight, value_at

__all__ = ["DistillationLoss", "Outputs", "SumOfLosses", "check_signature"]

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

    Losses add up: ``RCKALoss() + 0.5 * KDLoss()``. Every weight may be a function of ``progress``, such as `ramp`.
    """

    reads: tuple[str, ...] = ("logits", "features")
    """What the loss compares: ("logits",), ("features",) or both."""
    __array_ufunc__ = None  # numpy's numbers leave the multiplication to this class

    def __init__(self) -> None:
        super().__init__()
        self._progress = 0.0
        # Tensors on the host, written in place: a compiled loss reads them as inputs, where a number would be a
        # constant that recompiles the graph in every step.
        self._weights_now: dict[str, Tensor] = {}

    @property
    def progress(self) -> float:
        """How much of the run is finished, in [0, 1]. Weights that are schedules follow it.

        `distill` sets it before every step. In a loop of your own, set it yourself; it reaches the losses in this loss.
        """
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"`progress` is a fraction of the run, from 0 to 1, got {value!r}.")
        for part in self.modules():
            if isinstance(part, DistillationLoss):
                part._progress = float(value)
                for name, now in part._weights_now.items():
                    if callable(weight := getattr(part, name)):
                        now.fill_(value_at(name, weight, part._progress))

    def checked_weight(self, name: str, weight: Weight) -> Weight:
        """A weight argument of this loss: a float, or a schedule that follows ``progress`` from now on.

        Parameters
        ----------
        name : str
            Name of the argument, and of the attribute that the result is stored in.
        weight : float or callable
            The argument.

        Raises
        ------
        TypeError
            If it is neither a number nor a function that returns one.
        ValueError
            If a weight is negative.
        """
        weight = checked_weight(name, weight)
        if callable(weight):
            self._weights_now[name] = torch.tensor(value_at(name, weight, 0.0), dtype=torch.float64)
        return weight

    def weighted(self, name: str, term: Tensor) -> Tensor:
        """A term times the weight that is stored in the attribute ``name``, at the present ``progress``."""
        weight = getattr(self, name)
        if not callable(weight):
            return weight * term
        if name not in self._weights_now:  # the attribute was a number when the loss was made
            return value_at(name, weight, self._progress) * term
        return self._weights_now[name].to(term.dtype) * term

    def __add__(self, other: Any) -> DistillationLoss:
        return self._sum(self, other)

    def __radd__(self, other: Any) -> DistillationLoss:
        if isinstance(other, int | float) and other == 0:  # the start of sum([...])
            return self
        return self._sum(other, self)

    def __mul__(self, factor: Weight) -> DistillationLoss:
        if isinstance(factor, DistillationLoss):
            raise TypeError("Two losses cannot be multiplied. Add them, or multiply a loss by a number or a ramp.")
        return _multiplied(factor, self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> DistillationLoss:
        return self * (1 / divisor)

    @staticmethod
    def _sum(first: Any, second: Any) -> DistillationLoss:
        parts = []
        for one in (first, second):
            found = _as_parts(one)
            if found is None:
                raise TypeError(
                    f"A loss can be added to a loss, or to a function of (student, teacher, target), got {one!r}."
                )
            parts += found
        return SumOfLosses(parts)

    def terms(
        self,
        student: Outputs | Tensor | Sequence[Tensor],
        teacher: Outputs | Tensor | Sequence[Tensor],
        target: Tensor | None = None,
        *more: object,
    ) -> dict[str, Tensor]:
        """The weighted terms by name.

        Parameters
        ----------
        student, teacher : Outputs, Tensor or sequence of Tensor
            Outputs of the two networks for the same samples. A loss of logits also takes bare logits; a loss of
            features also takes one feature, or a sequence of them.
        target : Tensor (B,), optional
            Class labels.
        *more : object
            Refused with a message that shows the new form. Version 0.1 took five arguments.

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
        student, teacher = self._both(student, teacher, more)
        with _without_autocast(student, teacher), _checked_together(self):
            return self.compute_terms(student, teacher, target)

    def forward(
        self,
        student: Outputs | Tensor | Sequence[Tensor],
        teacher: Outputs | Tensor | Sequence[Tensor],
        target: Tensor | None = None,
        *more: object,
    ) -> Tensor:
        """The sum of `terms`, a scalar; 0 without terms. The arguments are those of `terms`."""
        # A subclass may define `terms` itself: it gets Outputs, without autocast, too.
        student, teacher = self._both(student, teacher, more)
        with _without_autocast(student, teacher), _checked_together(self):
            terms = self.terms(student, teacher, target)
        return torch.stack(list(terms.values())).sum() if terms else torch.zeros(())

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms by name; `terms` calls this with `Outputs` and without autocast."""
        raise NotImplementedError(f"{type(self).__name__} does not define `compute_terms`.")

    def _both(self, student: Any, teacher: Any, more: tuple[object, ...]) -> tuple[Outputs, Outputs]:
        """Both sides as `Outputs`. Raise TypeError for the five arguments of version 0.1."""
        if more:
            raise TypeError(
                f"{type(self).__name__} takes three arguments, (student, teacher, target), but was called with "
                f"{3 + len(more)}. Call {EXAMPLE}."
            )
        return self._outputs(student, "student"), self._outputs(teacher, "teacher")

    def _outputs(self, given: Any, owner: str) -> Outputs:
        """One network's side as `Outputs`, from a bare tensor too if the loss reads one kind of output."""
        if isinstance(given, Outputs):
            return _checked(given, owner)
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
        reads = {name for _, part in parts for name in part.reads}
        self.reads = tuple(name for name in ("logits", "features") if name in reads)

    @property
    def factors(self) -> tuple[Weight, ...]:
        """The factor of each part."""
        return tuple(getattr(self, f"factor_{number}") for number in range(len(self.parts)))

    @property
    def losses(self) -> list[DistillationLoss]:
        """The parts themselves."""
        return list(self.parts)  # type: ignore[arg-type]

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Prepare all parts, as `FitNetLoss` needs it. Call it once, before the optimiser is built."""
        for part in self.losses:
            if callable(prepare := getattr(part, "prepare", None)):
                prepare(student_features, teacher_features)

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The terms of all parts, times their factors."""
        found: dict[str, Tensor] = {}
        for number, part in enumerate(self.losses):
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


def _as_parts(thing: Any) -> list[tuple[Weight, DistillationLoss]] | None:
    """A loss, or a function of (student, teacher, target), as the parts of a sum; None for anything else."""
    if isinstance(thing, SumOfLosses):
        return list(zip(thing.factors, thing.losses, strict=True))
    if isinstance(thing, DistillationLoss):
        return [(1.0, thing)]
    if callable(thing) and not isinstance(thing, type):
        check_signature(thing)
        return [(1.0, _Function(thing))]
    return None


def _multiplied(factor: Weight, loss: DistillationLoss) -> SumOfLosses:
    """``factor * loss``; two numbers that multiply one loss become one."""
    if isinstance(loss, SumOfLosses) and len(loss.parts) == 1:
        (own,) = loss.factors
        if not callable(own) and not callable(factor):
            return SumOfLosses([(own * factor, loss.losses[0])])
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


def _checked(outputs: Outputs, owner: str) -> Outputs:
    """The same outputs with features as a tuple. Raise TypeError if features or mask are of the wrong kind."""
    features, mask = outputs.features, outputs.mask
    if isinstance(features, Tensor):
        raise TypeError(
            f"The {owner}'s features must be a tuple of tensors, one for each layer, got a single tensor. Put it in a "
            "tuple."
        )
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"The {owner}'s mask must be a tensor of shape (B, T), got {type(mask).__name__}.")
    return outputs._replace(features=() if features is None else tuple(features))


def _without_autocast(student: Outputs, teacher: Outputs) -> AbstractContextManager[Any]:
    """Switch autocast off: products in half precision would make CKA NaN, or wrong by 1e-3."""
    first = next(tensors((student, teacher)), None)
    if first is None or first.device.type == "meta":  # which has no autocast
        return nullcontext()
    return torch.autocast(first.device.type, enabled=False)


def _checked_together(loss: nn.Module) -> AbstractContextManager[Any]:
    """Ask at the end of a step whether its terms are defined; a compiled loss has no one to ask."""
    return nullcontext() if torch.compiler.is_compiling() else asked_together(loss)


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
