"""Gradient of one training step: of one batch, or over microbatches with the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...capture.state import buffers_restored, random_states, random_states_restored, set_random_states
from ..losses.contract import Outputs
from .batches import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "accumulated_gradient",
    "average_gradients",
    "exact_gradient",
    "same_buffers",
    "weighted_terms",
]


# A batch of which nothing counts has no parts either.
TINY = 1e-30


def weighted_terms(
    loss: nn.Module | Callable[..., Any] | None,
    supervision: Callable[[Tensor, Tensor], Tensor] | None,
    ce_weight: float,
    student: Outputs,
    teacher: Outputs | None,
    target: Any,
) -> dict[str, Tensor]:
    """Weighted terms whose sum is minimised: the loss on the targets, and the terms of the distillation loss.

    Parameters
    ----------
    loss : module, callable or None
        ``loss.terms(student, teacher, target)`` returns a dict of weighted terms. A loss without ``terms`` is called
        and counts as one term, "distillation".
    supervision : Supervision, callable or None
        ``supervision(output, target)``. None leaves it out.
    ce_weight : float
        Weight of the supervision; 0 leaves it out.
    student, teacher : Outputs
        Of the same samples.
    target : Tensor or None
        The targets.

    Returns
    -------
    dict of str to Tensor
        Scalars; that of the supervision comes first.
    """
    terms = {}
    if ce_weight and supervision:
        assert student.logits is not None
        terms[getattr(supervision, "name", "supervision")] = ce_weight * supervision(student.logits, target)
    if loss is not None and teacher is not None:
        found = loss.terms if hasattr(loss, "terms") else lambda *outputs: {"distillation": loss(*outputs)}
        terms.update(found(student, teacher, target))
    return terms


def accumulated_gradient(
    accelerator: Accelerator,
    student: nn.Module,
    teach: Callable[[Batch], Outputs | None],
    terms_of: Callable[[Outputs, Outputs | None, Tensor], dict[str, Tensor]],
    batch: Batch,
    parts: int = 1,
    weigh: Callable[[Batch], Tensor | int] = len,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add to the gradient the mean of the gradients of the microbatches' losses, weighted by what they count.

    With one part this is the ordinary step. With more parts it equals the gradient of the large batch for losses that
    are means over samples (cross-entropy, KD), not for losses that relate samples (CKA): see `exact_gradient`.

    Parameters
    ----------
    accelerator : Accelerator
        Scales and synchronises gradients.
    student : torch.nn.Module
        Returns `Outputs`; with or without the DDP wrapper.
    teach : callable
        The teacher's outputs for a batch, or None.
    terms_of : callable
        Weighted terms of the student's outputs, the teacher's outputs and the labels.
    batch : Batch
        The batch of this step.
    parts : int
        Number of microbatches.
    weigh : callable
        By how much a microbatch counts: by default the number of its samples.

    Returns
    -------
    logits : Tensor of shape (B, classes)
        Logits of the student, detached.
    terms : dict of str to Tensor
        Weighted terms of the whole batch, detached.
    """
    pieces = batch.split(parts)
    logits: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces):
        with _synchronised(accelerator, student, number == len(pieces) - 1):
            outputs = student(piece.inputs)
            share = 1.0 if len(pieces) == 1 else weigh(piece) / (weigh(batch) + TINY)
            terms = {name: term * share for name, term in terms_of(outputs, teach(piece), piece.target).items()}
            accelerator.backward(_total(terms))
        logits.append(outputs.logits.detach())
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach()
    return torch.cat(logits), sums


def exact_gradient(
    accelerator: Accelerator,
    student: nn.Module,
    teach: Callable[[Batch], Outputs | None],
    terms_of: Callable[[Outputs, Outputs | None, Tensor], dict[str, Tensor]],
    batch: Batch,
    parts: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the gradient of the whole batch's loss with the activations of one microbatch in memory at a time.

    A first pass without a graph collects the outputs of all microbatches; the loss of the whole batch gives the
    gradient with respect to them; a second pass repeats each microbatch, with the same dropout, and sends that gradient
    through it. This costs one more forward pass. The result equals the gradient of the large batch if the network
    computes each sample alone. Batch norm uses the microbatch, and updates its running statistics once
    for each microbatch. The gradient is added to ``grad``.

    Parameters and returns are those of `accumulated_gradient`.

    References
    ----------
    Gao, Zhang, Han and Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021
    (GradCache), section 3.
    """
    pieces = batch.split(parts)
    if len(pieces) == 1:
        return accumulated_gradient(accelerator, student, teach, terms_of, batch)

    states, seen, taught = [], [], []
    with torch.no_grad(), buffers_restored(student):
        for piece in pieces:
            states.append(random_states())
            seen.append(student(piece.inputs))
            taught.append(teach(piece))

    whole = _joined(seen)
    seen.clear()
    assert whole.logits is not None
    leaves = [leaf.requires_grad_() for leaf in (whole.logits, *whole.features)]
    teacher_outputs = None if taught[0] is None else _joined([outputs for outputs in taught if outputs is not None])
    terms = terms_of(whole, teacher_outputs, batch.target)
    accelerator.backward(_total(terms))

    offset = 0
    # The generators must end as after one forward pass over the batch, which is where the first pass ended.
    with random_states_restored():
        for number, (piece, state) in enumerate(zip(pieces, states, strict=True)):
            set_random_states(state)
            with _synchronised(accelerator, student, number == len(pieces) - 1):
                again = student(piece.inputs)
                # The leaves' gradients already have the loss scale of mixed precision: no accelerator.backward here.
                outputs, gradients = [], []
                for output, leaf in zip((again.logits, *again.features), leaves, strict=True):
                    if leaf.grad is not None and output.requires_grad:
                        outputs.append(output)
                        gradients.append(leaf.grad[offset : offset + len(piece)])
                torch.autograd.backward(outputs, gradients)
            offset += len(piece)
    return whole.logits.detach(), {name: term.detach() for name, term in terms.items()}


def average_gradients(accelerator: Accelerator, loss: nn.Module) -> None:
    """Average the gradients of a loss with parameters over all processes, as DDP does for the student."""
    if accelerator.num_processes > 1:
        for parameter in loss.parameters():
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def same_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the running statistics of batch norm of the first, so that all score the same network."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    """Outputs of the microbatches, joined along the samples."""
    logits, features, masks = zip(*outputs, strict=True)
    joined = tuple(torch.cat(pieces) for pieces in zip(*features, strict=True))
    return Outputs(torch.cat(logits), joined, None if masks[0] is None else torch.cat(masks))


def _synchronised(accelerator: Accelerator, student: nn.Module, last: bool) -> Any:
    """Context in which gradients are synchronised between processes for the last microbatch only."""
    return nullcontext() if last else accelerator.no_sync(student)
