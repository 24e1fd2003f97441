"""Checks of the options of a comparison that need no network and no data, so that they fail before the first batch."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..capture.nearest import nearest
from ..estimators.kernels import KERNELS, Kernel, Linear, kernel_from_name

__all__ = [
    "check_autocast",
    "check_checkpoint",
    "check_forward",
    "check_measure_options",
    "check_process_group",
    "checked_kernel",
]


def checked_kernel(kernel: Any) -> Kernel:
    """The kernel; ``Linear()`` for None.

    Raises
    ------
    TypeError
        If it is a name, a class or a number instead of a kernel.

    Examples
    --------
    >>> checked_kernel("rbf")
    Traceback (most recent call last):
    TypeError: `kernel` is the text 'rbf'. Pass the kernel itself: kernel=cka_probe.RBF().
    """
    if kernel is None:
        return Linear()
    if isinstance(kernel, type):
        raise TypeError(f"`kernel` is the class {kernel.__name__}. Pass a kernel: kernel={kernel.__name__}().")
    if isinstance(kernel, str):
        try:
            found = type(kernel_from_name(kernel)).__name__
        except ValueError:
            names = ", ".join(f"{one.__name__}()" for one in KERNELS.values())
            raise TypeError(f"`kernel` is the text {kernel!r}. Pass a kernel of cka_probe: {names}.") from None
        raise TypeError(f"`kernel` is the text {kernel!r}. Pass the kernel itself: kernel=cka_probe.{found}().")
    if not callable(kernel):
        raise TypeError(f"`kernel` must be a kernel such as cka_probe.RBF(), got {type(kernel).__name__}.")
    return kernel


def check_measure_options(caller: Callable[..., Any], measure: str, options: Mapping[str, Any]) -> None:
    """Check the keywords that ``caller`` passes on to the measure, by their names and, as far as possible, values.

    Raises
    ------
    TypeError
        If a keyword is neither a parameter of ``caller`` nor an option of the measure; the message gives the nearest of
        both. Also if a value is of the wrong type.
    ValueError
        If a value is out of range for any number of samples.
    """
    from ..estimators.measures.catalogue import MEASURES

    if not isinstance(measure, str) or (measure != "cka" and measure not in MEASURES):
        return  # ``Request`` says which measures there are
    known = {} if measure == "cka" else MEASURES[measure].options
    parameters = [name for name in inspect.signature(caller).parameters if name != "options"]
    for option in options:
        if option not in known:
            near = nearest(option, [*known, *parameters], most=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            listed = ", ".join(f"`{name}`" for name in known)
            which = f" The options of this measure are {listed}." if known else " This measure has no options."
            raise TypeError(
                f"`{option}` is neither a parameter of `{caller.__name__}` nor an option of the measure {measure!r}."
                f"{hint}{which}"
            )
    if measure != "cka":
        MEASURES[measure].try_options(dict(options))


def check_forward(forward: Any) -> None:
    """Raise TypeError unless ``forward`` can be called as ``forward(model, batch)``."""
    if forward is None:
        return
    if not callable(forward):
        raise TypeError(f"`forward` must be a function forward(model, batch), got {type(forward).__name__}.")
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # a function in C, which does not say what it takes
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"`forward` is called with the model and a batch, forward(model, batch), but takes {signature}: {error}."
        ) from None


def check_autocast(autocast: Any) -> None:
    """Raise TypeError unless ``autocast`` is None or a floating dtype of torch."""
    if autocast is None or (isinstance(autocast, torch.dtype) and autocast.is_floating_point):
        return
    raise TypeError(f"`autocast` must be torch.bfloat16 or torch.float16, got {autocast!r}.")


def check_process_group() -> None:
    """Raise RuntimeError unless torch.distributed is ready for ``distributed=True``."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "distributed=True needs torch.distributed: start with torchrun and call init_process_group first."
        )


def check_checkpoint(checkpoint: Any, kernel: Kernel) -> None:
    """Raise an error unless ``checkpoint`` is the path of a file that can be written, for a comparison with ``kernel``.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If another process could not tell that it has the same kernel.
    OSError
        If it is a folder, or its folder is missing or read-only.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"`checkpoint` must be the path of a file, got {checkpoint!r}.")
    if " at 0x" in repr(kernel):
        raise ValueError(
            f"`checkpoint` holds the kernel by its repr, and that of {kernel!r} differs in the next process. So it "
            "could not resume. Make the kernel a frozen dataclass with __call__, or leave `checkpoint` out."
        )
    path = Path(checkpoint)
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise IsADirectoryError(f"`checkpoint`: {path} is a folder. Choose the path of a file in it.")
    if not folder.exists():
        raise FileNotFoundError(f"`checkpoint`: the folder {folder} does not exist. Create it, or choose another path.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            error.errno, f"`checkpoint`: no file can be written in {folder} ({error.strerror}). Choose another path."
        ) from error
