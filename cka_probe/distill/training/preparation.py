"""Before the first step: check the arguments, choose the layers, and try the loss on a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...capture.state import borrowed, buffers_restored
from ..losses.contract import Outputs, check_signature
from ..taps.stages import match_stages
from ..taps.tapped_model import TappedModel
from .batches import Batch
from .steps import weighted_terms
from .supervision import Supervision
from .teachers import forward_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .settings import Settings

__all__ = ["LayerNames", "check_arguments", "choose_layers", "fit_together"]

LayerNames = Sequence[str] | str
"""Paths of layers, or "auto"."""


def check_arguments(teachers: Sequence[nn.Module], student: nn.Module, loss: Any, given: Settings) -> None:
    """Raise TypeError or ValueError if the networks, the loss and the settings of `distill` do not belong together."""
    for name, model in (*(("teacher", one) for one in teachers), ("student", student)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"`{name}` must be a torch.nn.Module, got {type(model).__name__}.")
    for one in teachers:
        if {id(p) for p in one.parameters()} & {id(p) for p in student.parameters()}:
            raise ValueError(
                "`teacher` and `student` share parameters, but the teacher is frozen. Give the student its own copy."
            )
    if loss is not None and not callable(loss):
        raise TypeError(f"`loss` must be a module, a function or None, got {type(loss).__name__}.")
    if loss is not None:
        check_signature(loss)
    if loss is not None and not teachers:
        raise ValueError(
            "`loss` compares the student with a teacher, but teacher is None. Pass loss=None to train alone."
        )
    if loss is None and (given.ce_weight == 0 or given.supervision is None):
        which = "ce_weight is 0" if given.ce_weight == 0 else "supervision is None"
        raise ValueError(f"There is nothing to minimise: loss is None and {which}.")
    if given.diagnostics is not None and len(teachers) > 1:
        raise ValueError("`diagnostics` compare the student with one teacher, but there are several. Leave it out.")
    if given.diagnostics is not None and not teachers:
        raise ValueError("`diagnostics` compare the student with a teacher, but teacher is None.")
    if given.teacher_cache is not None and loss is None:
        raise ValueError("`teacher_cache` keeps the teacher's outputs for the loss, but loss is None.")


def choose_layers(
    teacher: nn.Module | None,
    student: nn.Module,
    loss: Any,
    sample: Batch,
    student_layers: LayerNames = "auto",
    teacher_layers: LayerNames | None = None,
    forward: Any = None,
) -> tuple[list[str], list[str]]:
    """Layers to tap in the student and in the teacher, pair by pair.

    "auto" matches the stages of the networks. It taps no layer if the loss needs no features.

    Raises
    ------
    ValueError
        If the lists differ in length, or no stages are found.
    TypeError
        If a list is a string other than "auto".
    """
    if student_layers == "auto" and teacher_layers in (None, "auto"):
        if teacher is None or not _needs_features(loss, student, sample, forward):
            return [], []
        ways = {role: forward_of(forward, role) for role in ("student", "teacher")}
        return match_stages(student, teacher, sample.inputs, ways)
    teacher_layers = student_layers if teacher_layers is None else teacher_layers
    for name, layers in (("student_layers", student_layers), ("teacher_layers", teacher_layers)):
        if isinstance(layers, str):
            raise TypeError(f'`{name}` must be a sequence of layer paths, or "auto" for both networks, got {layers!r}.')
    if len(student_layers) != len(teacher_layers):
        raise ValueError(
            f"`student_layers` and `teacher_layers` are compared pair by pair, got {len(student_layers)} and "
            f"{len(teacher_layers)} layers."
        )
    return list(student_layers), list(teacher_layers)


def _needs_features(loss: Any, student: nn.Module, sample: Batch, forward: Any) -> bool:
    """Whether the loss fails on the logits alone."""
    if loss is None:
        return False
    sample = sample.split(len(sample) // 8)[0]  # a few samples are enough
    with borrowed([student]), buffers_restored(student):
        student.train()  # for the same reason as in `fit_together`
        logits = TappedModel(student, (), "student", forward_of(forward, "student"))(sample.inputs).logits
        try:
            weighted_terms(loss, None, 0.0, Outputs(logits), Outputs(logits.clone()), sample.target)
        except Exception:  # a missing feature can raise any error
            return True
    return False


def fit_together(
    pupil: TappedModel,
    teach: Callable[[Batch], Any],
    loss: Any,
    supervision: Supervision,
    terms_of: Callable[..., dict[str, Tensor]],
    sample: Batch,
    accelerator: Accelerator,
) -> Tensor:
    """Check on a sample batch that networks, targets and losses fit together; return the student's output.

    If the loss has a method ``prepare(student_features, teacher_features)``, it creates its parameters here.

    Raises
    ------
    ValueError
        If the targets do not fit the student, or the loss compares logits of different classes.
    """
    # In train mode, as in training. In eval mode, the initial running statistics of batch norm can make the outputs of
    # a deep network constant.
    pupil.train()
    with torch.no_grad(), buffers_restored(pupil), accelerator.autocast():
        outputs = pupil(sample.inputs).in_float32()
    taught = teach(sample)
    supervision.to(accelerator.device)
    with torch.no_grad():
        supervision.check(outputs.logits, sample.target, "train")
    if taught is None:
        return outputs.logits
    if hasattr(loss, "prepare"):
        loss.prepare(outputs.features, taught.features)
    if isinstance(loss, nn.Module):
        loss.to(accelerator.device)
    try:
        with torch.no_grad():
            terms_of(outputs, taught, sample.target)
    except Exception as error:
        # Different classes are an error only if the loss fails: a loss of features does not compare logits.
        ours, theirs = outputs.logits.shape[-1], taught.logits.shape[-1]
        if theirs != ours:
            raise ValueError(
                f"The teacher has {theirs} classes and the student {ours}; this loss compares their logits. Give both "
                "the same classes."
            ) from error
        raise
    return outputs.logits
