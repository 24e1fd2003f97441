"""Errors that depend on the values of tensors, without waiting for a GPU and without breaking a compiled graph.

A question such as "is this CKA NaN?" makes the host wait for a GPU, and a compiler cannot trace it. So a loss only
hands in its questions, which are asked once for all terms of a step:

values are     asked                                   a loss that is not defined
on a CPU       at the end of the step                  raises at once
on a GPU       when their copy on the host is ready    raises in the next call, as a rule
compiled       never                                   is NaN, which `distill` finds
under vmap     never                                   is NaN
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["asked_together", "raise_if", "raise_pending"]

# Results that a GPU has not delivered yet. More steps than these are hardly ever in flight, so that the host only waits
# for a step that ended long ago.
IN_FLIGHT = 8


class _Question(NamedTuple):
    """The arguments of `raise_if`."""

    wrong: Tensor
    facts: Callable[[], Tensor]
    error: Callable[[Sequence[int]], Exception]


class _InFlight(NamedTuple):
    """Answers on their way from a GPU: a row (wrong, *facts) for each error that may be due."""

    answers: Tensor
    ready: torch.cuda.Event | None
    errors: list[Callable[[Sequence[int]], Exception]]


class _Open(threading.local):
    """The questions of the step that this thread is in; None outside a step."""

    questions: list[_Question] | None = None


_open = _Open()
# Not an attribute of the loss: what is in flight does not belong to its state, its copies or its identity.
_in_flight: WeakKeyDictionary[nn.Module, list[_InFlight]] = WeakKeyDictionary()


def raise_if(wrong: Tensor, facts: Callable[[], Tensor], error: Callable[[Sequence[int]], Exception]) -> None:
    """Raise ``error(facts())`` if ``wrong`` is true: at the end of `asked_together`, or when a GPU has the answer.

    Parameters
    ----------
    wrong : Tensor
        Boolean scalar.
    facts : callable
        Returns what the message depends on: truth values or whole numbers (k,). On a GPU it is called in every step,
        so it must be cheap.
    error : callable
        Makes the error from the list of facts. It must not hold tensors, which would stay in memory.
    """
    if torch.compiler.is_compiling():
        return
    question = _Question(wrong.detach(), facts, error)
    if _open.questions is None:
        _ask(None, [question])
    else:
        _open.questions.append(question)


@contextmanager
def asked_together(loss: nn.Module) -> Iterator[None]:
    """Ask all questions of a step with one look at the tensors, at its end. Inner calls join the outer one.

    Parameters
    ----------
    loss : torch.nn.Module
        Whose questions they are. What a GPU has not answered is raised in a later call with the same loss.
    """
    if _open.questions is not None:
        yield
        return
    raise_pending(loss)
    _open.questions = []
    try:
        yield
        questions = _open.questions
    finally:
        _open.questions = None
    if questions:
        _ask(loss, questions)


def raise_pending(loss: nn.Module, *, wait: bool = False) -> None:
    """Raise the error of an earlier step, if a GPU has answered by now.

    Parameters
    ----------
    loss : torch.nn.Module
        The loss of that step.
    wait : bool
        Whether to wait for all answers.
    """
    waiting = _in_flight.get(loss, [])
    while waiting:
        first = waiting[0]
        if first.ready is not None and not first.ready.query():
            if not wait and len(waiting) < IN_FLIGHT:
                return
            first.ready.synchronize()
        del waiting[0]
        for (wrong, *facts), error in zip(first.answers.tolist(), first.errors, strict=True):
            if wrong:
                waiting.clear()
                raise error(facts)


def _ask(loss: nn.Module | None, questions: list[_Question]) -> None:
    by_device: dict[torch.device, list[_Question]] = {}
    for question in questions:
        by_device.setdefault(question.wrong.device, []).append(question)
    for device, group in by_device.items():
        if loss is None or is_host(device):
            _ask_now(group)
        elif not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            _in_flight.setdefault(loss, []).append(_sent(group, device))


def is_host(device: torch.device) -> bool:
    """Whether the host reads tensors of this device without waiting."""
    return device.type in ("cpu", "meta")


def _ask_now(questions: list[_Question]) -> None:
    try:
        if not bool(torch.stack([question.wrong for question in questions]).any()):
            return
    except RuntimeError:  # tensors without values: under vmap, on the meta device, or FakeTensor
        return
    for question in questions:
        if bool(question.wrong):
            raise question.error(question.facts().tolist())


def _sent(questions: list[_Question], device: torch.device) -> _InFlight:
    """The answers, on their way to the host."""
    facts = [question.facts() for question in questions]
    table = torch.zeros(len(questions), 1 + max(map(len, facts)), dtype=torch.int64, device=device)
    for row, question, known in zip(table, questions, facts, strict=True):
        row[0] = question.wrong
        row[1 : 1 + len(known)] = known
    errors = [question.error for question in questions]
    if device.type != "cuda":
        return _InFlight(table, None, errors)
    copy = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
    copy.copy_(table, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))
    return _InFlight(copy, ready, errors)
