"""Settings that identify a run: what decides its outcome besides the data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ...identity import identity, weights_digest
from .checkpoints import has_checkpoint

__all__ = [
    "check_processes_agree",
    "extension_refused",
    "identity_at_start",
    "networks_identity",
    "samples_of",
    "weights_at_start",
]

_AT_START: WeakKeyDictionary[nn.Module, dict[tuple[str, str], str]] = WeakKeyDictionary()


def weights_at_start(student: nn.Module, directory: Path | str | None, resume: bool) -> str:
    """Digest of the weights with which the run in ``directory`` began to train this student."""
    return _at_start("weights", student, weights_digest, directory, resume)


def identity_at_start(loss: Any, directory: Path | str | None, resume: bool) -> str:
    """Identity of the loss as it was when the run in ``directory`` began: a loss may count its steps."""
    return _at_start("loss", loss, identity, directory, resume)


def networks_identity(
    teacher: nn.Module | None, student: nn.Module, directory: Path | str | None, resume: bool
) -> dict[str, str]:
    """Texts for the structure and the code of the two networks, without their weights.

    Call it before the first forward pass, which may change attributes. A text differs if a layer, an option of a layer
    (the probability of dropout), the code of a class of the user's, a plain attribute of a module or the choice of
    trained parameters differs.
    """
    pair = {"teacher": teacher, "student": student}
    return {
        name: "none" if model is None else _network_identity(model, directory, resume) for name, model in pair.items()
    }


def _network_identity(model: nn.Module, directory: Path | str | None, resume: bool) -> str:
    shown = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    kinds = sorted({identity(type(module)) for module in model.modules()})
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # Some networks keep the size of their last picture as attributes.
    attributes = _at_start("attributes", model, _attributes, directory, resume)
    digest = hashlib.blake2b(repr([shown, kinds, trained, attributes]).encode(), digest_size=6).hexdigest()
    return f"{type(model).__qualname__} #{digest}"


def _attributes(model: nn.Module) -> str:
    """The numbers and texts that the modules of a network hold as attributes."""
    return repr(
        [
            (place, name, value)
            for place, module in model.named_modules()
            for name, value in sorted(vars(module).items())
            if isinstance(value, bool | int | float | str)
            and not name.startswith("_")
            and name not in ("training", "name_or_path")
        ]
    )


def samples_of(data: Any) -> int | None:
    """Number of samples of a data set or of the data set of a loader; None if it is unknown."""
    try:
        return len(getattr(data, "dataset", data))
    except TypeError:
        return None


def _at_start(kind: str, thing: Any, describe: Callable[[Any], str], directory: Path | str | None, resume: bool) -> str:
    """Result of ``describe``; the earlier one if this process has run the same object in this directory before.

    A run trains its student in place. After Ctrl-C in a notebook the same object is passed again, with other weights.
    """
    if directory is None or not isinstance(thing, nn.Module):
        return describe(thing)
    known = _AT_START.setdefault(thing, {})
    place = (kind, str(Path(directory).resolve()))
    if not (resume and place in known and has_checkpoint(directory)):
        known[place] = describe(thing)
    return known[place]


def extension_refused(
    schedule: Callable[[int, int], float], before: int, now: int, finished: int, unit: str = "epoch"
) -> str | None:
    """Reason why a run of ``before`` epochs (or steps) cannot go on to ``now`` epochs; None if it can.

    It can if the epochs that have begun would have had the same learning rates.

    Examples
    --------
    >>> extension_refused(lambda epoch, epochs: 1 - epoch / epochs, before=2, now=4, finished=2)
    'the schedule of 4 epochs has another learning rate in epoch 2'
    """
    if now < finished:
        return f"{finished} {unit}s are finished already"
    for epoch in range(finished):
        if schedule(epoch, before) != schedule(epoch, now):
            return f"the schedule of {now} {unit}s has another learning rate in {unit} {epoch + 1}"
    return None


def check_processes_agree(settings: Mapping[str, Any]) -> None:
    """Raise ValueError in every process if one has other settings, weights or code than the first."""
    from accelerate.utils import gather_object

    first, *others = gather_object([dict(settings)])
    for rank, other in enumerate(others, 1):
        different = [key for key in first if other[key] != first[key]]
        if different:
            key = different[0]
            raise ValueError(
                f"The processes of this run differ: {key} is {first[key]!r} in process 0 and {other[key]!r} in "
                f"process {rank}. Give all the same arguments and the same seed before the networks are built."
            )
