"""The loss on the targets: what the student is asked, which targets fit, and whether answers can be right or wrong."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from accelerate import Accelerator

from ...capture.notes import first_line

__all__ = ["Supervision", "name_of", "next_token_cross_entropy"]

IGNORED = -100
"""Target of a token that does not count, as in torch and transformers."""

_BROADCAST = re.compile("target size .* is different to the input size")


def next_token_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a causal language model: each token is predicted from those before it.

    Parameters
    ----------
    output : Tensor of shape (B, T, V)
        Logits.
    target : Tensor of shape (B, T)
        The tokens themselves, not shifted; -100 where a token does not count.

    Returns
    -------
    Tensor
        The mean over the tokens that count, a scalar.

    Examples
    --------
    >>> import torch
    >>> tokens = torch.tensor([[1, 2, 0]])
    >>> certain = 20.0 * torch.eye(3)[[2, 0, 1]][None]  # the right next tokens
    >>> round(float(next_token_cross_entropy(certain, tokens)), 3)
    0.0
    """
    return functional.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=IGNORED)


class Supervision:
    """Loss of the student's output on the targets, with checks of the targets.

    Parameters
    ----------
    given : callable, "cross_entropy" or None
        ``given(output, target)`` returns a scalar. "cross_entropy" is torch's, for class indices (B,), soft labels
        (B, classes), label maps (B, H, W) beside (B, classes, H, W), and tokens (B, T) beside (B, T, classes), where
        -100 does not count; for a causal language model of transformers, `next_token_cross_entropy`. None: there are no
        targets.
    student : torch.nn.Module
        Decides whether it is a causal language model.

    Raises
    ------
    TypeError
        If `given` is nothing of these.

    Attributes
    ----------
    name : str
        Name of its term in the history: "cross_entropy", or the name of the function or class.
    notes : tuple of str
        What a user should know about the choice.
    """

    def __init__(self, given: Callable[[Tensor, Tensor], Tensor] | str | None, student: nn.Module) -> None:
        if isinstance(given, str) and given != "cross_entropy":
            raise TypeError(
                f'`supervision` must be "cross_entropy", a function of (output, target) or None, got {given!r}.'
            )
        if isinstance(given, type):
            raise TypeError(f"`supervision` is the class {given.__name__}: make an object of it, {given.__name__}().")
        if given not in (None, "cross_entropy") and not callable(given):
            raise TypeError(f"`supervision` must be a function of (output, target), got {type(given).__name__}.")
        trained = isinstance(given, nn.Module) and any(one.requires_grad for one in given.parameters())
        if trained:
            raise ValueError(
                f"`supervision` ({name_of(given)}) has parameters, and only those of the student and of `loss` are "
                "trained. Make it a part of the student, or freeze it: supervision.requires_grad_(False)."
            )
        self.given = given
        self.notes: tuple[str, ...] = ()
        self._loss: Callable[[Tensor, Tensor], Tensor] | None
        if given == "cross_entropy":
            causal = _is_causal(student)
            self._loss = next_token_cross_entropy if causal else functional.cross_entropy
            if causal:
                self.notes = (
                    f"{type(student).__name__} is a causal language model: its cross-entropy compares each token with "
                    "the prediction from those before it, as its own loss does. Pass `supervision` for another loss.",
                )
        else:
            self._loss = given if callable(given) else None
        self.ignored = int(getattr(self._loss, "ignore_index", IGNORED))
        self.shifts = self._loss is next_token_cross_entropy
        self.name = "cross_entropy" if self._is_cross_entropy or self.shifts else name_of(self._loss)

    def __bool__(self) -> bool:
        return self._loss is not None

    def to(self, device: torch.device) -> None:
        """Move class weights, and other tensors of a module, to a device."""
        if isinstance(self._loss, nn.Module):
            self._loss.to(device)

    @property
    def _is_cross_entropy(self) -> bool:
        return self._loss is functional.cross_entropy or isinstance(self._loss, nn.CrossEntropyLoss)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        assert self._loss is not None
        if self._is_cross_entropy and _is_tokens(output, target):
            output = output.transpose(1, 2)
        value = self._loss(output, target)
        weight = self.weight_of(target) if self.is_mean(target) else None
        # Torch's mean over no answers is NaN. A batch without labelled samples must not end the run.
        return value.masked_fill(weight == 0, 0.0) if isinstance(weight, Tensor) else value

    def is_mean(self, target: Any) -> bool:
        """Whether the loss of a batch is known to be the mean of those of its parts, each weighted by `weight_of`."""
        plain = isinstance(self._loss, nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss | nn.BCEWithLogitsLoss)
        known = plain or self._is_cross_entropy or self.shifts
        return isinstance(target, Tensor) and known and getattr(self._loss, "reduction", "mean") == "mean"

    def weight_of(self, target: Any) -> Tensor | int:
        """By how much a batch counts in a mean over several batches: its samples, or its answers in cross-entropy.

        Cross-entropy is a mean over the answers that are not ignored, each weighted by its class.
        """
        if not (self._is_cross_entropy or self.shifts) or not self.is_mean(target):
            return len(target)
        if target.is_floating_point():  # probabilities: all count
            return len(target)
        target = target[:, 1:] if self.shifts else target
        counted = target != self.ignored
        weight = getattr(self._loss, "weight", None)
        if weight is None:
            return counted.sum()
        return (weight.to(target.device)[target.masked_fill(~counted, 0)] * counted).sum()

    def share_of_process(self, target: Any, accelerator: Accelerator) -> Tensor | float:
        """Factor of the loss of one process, so that the mean over processes is the loss of all their answers."""
        weight = self.weight_of(target) if self.is_mean(target) else None
        if not isinstance(weight, Tensor):
            return 1.0
        weight = weight.float()
        return weight * accelerator.num_processes / accelerator.reduce(weight.clone(), reduction="sum").clamp(min=1e-12)

    def check(self, output: Tensor, target: Tensor, where: str) -> None:
        """Raise ValueError or TypeError unless the targets of a batch fit the student's output.

        Parameters
        ----------
        output : Tensor
            The student's output.
        target : Tensor
            The targets.
        where : str
            "train" or "test", for the message.
        """
        if not self:
            return
        if not isinstance(target, Tensor):
            raise TypeError(f"The targets of `{where}` must be a tensor, got {type(target).__name__}.")
        if self._is_cross_entropy or self.shifts:
            self._check_classes(output, target, where)
        shapes = f"the output has shape {tuple(output.shape)} and the target {tuple(target.shape)}"
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            try:
                value = self(output, target)
            except Exception as error:  # of the user's function, or of torch
                raise ValueError(
                    f"`supervision` ({self.name}) fails on a batch of `{where}`: {first_line(error)} ({shapes}, "
                    f"{target.dtype})."
                ) from error
        for one in found:
            if _BROADCAST.search(str(one.message)):
                raise ValueError(
                    f"`supervision` ({self.name}): {shapes} in `{where}`, so each output would be compared with every "
                    "target. Give both the same shape, for example target.unsqueeze(1)."
                )
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if not isinstance(value, Tensor) or value.ndim:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`supervision` ({self.name}) must return a scalar tensor, got {what}. Take the mean.")

    def _check_classes(self, output: Tensor, target: Tensor, where: str) -> None:
        shapes = f"the output has shape {tuple(output.shape)} and the target {tuple(target.shape)}"
        if output.ndim < 2:
            raise ValueError(f"Cross-entropy needs an output (B, classes), but {shapes}.")
        if target.is_floating_point():
            if target.shape != output.shape:
                raise ValueError(
                    f"`{where}` has targets of dtype {target.dtype}, which cross-entropy takes as probabilities of "
                    f"the classes, but {shapes}. For class numbers use int64; for regression pass "
                    "supervision=torch.nn.MSELoss()."
                )
            low, total = float(target.min()), target.sum(1)
            if low < 0 or float((total - 1).abs().max()) > 1e-2:
                raise ValueError(
                    f"`{where}` has targets of shape {tuple(target.shape)} that are no probabilities (smallest "
                    f"{low:.3g}, sums {float(total.min()):.3g} to {float(total.max()):.3g}). For several labels at "
                    "once pass supervision=torch.nn.BCEWithLogitsLoss(), for regression torch.nn.MSELoss()."
                )
            return
        classes = output.shape[-1] if self.shifts or _is_tokens(output, target) else output.shape[1]
        expected = output.shape[:2] if self.shifts or _is_tokens(output, target) else (len(output), *output.shape[2:])
        if target.shape != tuple(expected):
            one_hot = target.shape == output.shape
            hint = "They look one-hot: use target.argmax(1), or target.float()." if one_hot else ""
            hint = "Use target.squeeze(1)." if target.shape == (len(output), 1) else hint
            raise ValueError(f"`{where}`: cross-entropy needs a class number for each answer, but {shapes}. {hint}")
        counted = target[target != self.ignored]
        if len(counted) and (int(counted.min()) < 0 or int(counted.max()) >= classes):
            wrong = int(counted.max()) if int(counted.max()) >= classes else int(counted.min())
            raise ValueError(
                f"`{where}` has the label {wrong}, but the student has {classes} classes (0 to {classes - 1})."
            )

    def answers(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scores (N, classes) and class numbers (N,) of all answers; None if answers are not classes.

        An answer whose number is ``ignored`` does not count.
        """
        if not self or not isinstance(target, Tensor) or output.ndim < 2:
            return None
        if target.is_floating_point():
            if not self._is_cross_entropy or target.shape != output.shape:
                return None
            target = target.argmax(1)
        if target.dtype is torch.bool:
            return None
        if self.shifts:
            output, target = output[:, :-1], target[:, 1:]
        elif not _is_tokens(output, target):
            output = output.movedim(1, -1)
        if target.shape != output.shape[:-1]:
            return None
        return output.reshape(-1, output.shape[-1]), target.reshape(-1)


def _is_tokens(output: Tensor, target: Tensor) -> bool:
    """Whether the classes stand on the last axis: tokens (B, T) beside (B, T, classes)."""
    return output.ndim == 3 and target.ndim == 2 and target.shape == output.shape[:2]


def _is_causal(student: nn.Module) -> bool:
    """Whether it is a causal language model of transformers, whose own loss shifts the labels."""
    name = type(student).__name__
    return hasattr(student, "config") and (name.endswith(("ForCausalLM", "LMHeadModel")))


def name_of(thing: Any) -> str:
    """Name of a loss or metric in the history: "mse_loss" for ``nn.MSELoss()`` and for ``functional.mse_loss``."""
    inner = getattr(thing, "func", thing)  # a functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    if not name.isidentifier():  # a lambda
        return "supervision"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
