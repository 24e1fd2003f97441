"""Logs of a run through the trackers of accelerate: TensorBoard, Weights & Biases, MLflow and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...capture.extras import require

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["trackers_of", "values_of"]

PROJECT = "cka-probe"
"""The project's name for trackers that keep projects."""


@contextmanager
def trackers_of(
    accelerator: Accelerator,
    log_with: Any,
    directory: Path | None,
    settings: Mapping[str, Any],
    first: int | None,
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """Start trackers for a run and give a function that logs values under a step; finish them afterwards.

    Trackers that the accelerator already has get the values too, and stay open.

    Parameters
    ----------
    accelerator : Accelerator
        Of the run.
    log_with : str, GeneralTracker, sequence of them, or None
        As in `accelerate.Accelerator`.
    directory : path or None
        Folder of the run. Trackers that write files write into folders in it that have their names.
    settings : mapping
        Settings of the run, which the trackers store.
    first : int or None
        The first step that will be logged again, in a run that is resumed: TensorBoard hides what was logged from there
        on. None in a new run.

    Raises
    ------
    TypeError
        If an element of `log_with` is neither a name nor a tracker.
    ValueError
        If a name is unknown, or a tracker that writes files has no directory.
    ModuleNotFoundError
        If a tracker's library is not installed.
    """
    made: list[Any] = []
    try:
        for tracker in _wanted(log_with, directory):
            if accelerator.is_main_process:
                made.append(_started(tracker, directory, settings, first))
                accelerator.trackers.append(made[-1])
        yield lambda values, step: accelerator.log(dict(values), step=step)
    finally:
        for tracker in made:
            accelerator.trackers.remove(tracker)
            tracker.finish()


def values_of(row: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The values that are logged for a row of the history, with those of its epoch's diagnostics.

    Examples
    --------
    >>> lines = [{"epoch": 1, "quantity": "cka", "first": "layer1", "second": "stem", "value": 0.5}]
    >>> values_of({"epoch": 1, "train_loss": 0.2}, lines)
    {'train_loss': 0.2, 'cka/layer1/stem': 0.5}
    """
    values = {name: value for name, value in row.items() if name not in ("epoch", "step")}
    for line in lines:
        if line["epoch"] == row["epoch"]:
            values["/".join(filter(None, (line["quantity"], line["first"], line["second"])))] = line["value"]
    return values


def _wanted(log_with: Any, directory: Path | None) -> list[Any]:
    """Trackers, and the names of those that are to be made, once each."""
    from accelerate.tracking import get_available_trackers

    asked = [] if log_with is None else list(log_with) if isinstance(log_with, list | tuple) else [log_with]
    names: list[Any] = []
    for one in asked:
        names += [*get_available_trackers()] if getattr(one, "value", one) == "all" else [one]
    return list(dict.fromkeys(_checked(name, directory) for name in names))


def _started(tracker: Any, directory: Path | None, settings: Mapping[str, Any], first: int | None) -> Any:
    """A tracker that has begun to log."""
    if isinstance(tracker, str):
        kind = _class_of(tracker)
        options = {"purge_step": first} if tracker == "tensorboard" and first is not None else {}
        place = (tracker if tracker == "tensorboard" else PROJECT, str(directory))
        tracker = kind(*place, **options) if kind.requires_logging_directory else kind(PROJECT)
    if callable(start := getattr(tracker, "start", None)):  # older versions of accelerate have none
        start()
    if tracker.name != "tensorboard":  # it would show the settings as a run of their own; settings.json has them
        tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
    return tracker


def _checked(name: Any, directory: Path | None) -> Any:
    """A tracker, or the name of one that can be started."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

    if isinstance(name, GeneralTracker):
        return name
    known: Sequence[str] = [str(one) for one in LOGGER_TYPE_TO_CLASS]
    text = str(getattr(name, "value", name))
    if not isinstance(name, str) and text not in known:
        raise TypeError(f"`log_with` is a name, a GeneralTracker of accelerate, or a list of them, got {name!r}.")
    if text not in known:
        raise ValueError(f"`log_with`: accelerate has no tracker {text!r}. It has {', '.join(sorted(known))}.")
    if text not in [str(one) for one in get_available_trackers()]:
        require(text, text if text == "tensorboard" else None, f"log_with={text!r}")
        raise ModuleNotFoundError(f"`log_with`: accelerate cannot use {text}. Is it installed?", name=text)
    if _class_of(text).requires_logging_directory and directory is None:
        raise ValueError(f"`log_with`={text!r} needs an `output_dir` to write to.")
    return text


def _class_of(name: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return LOGGER_TYPE_TO_CLASS[name]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)
