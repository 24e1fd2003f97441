"""Weights and checkpoints of a run as files. A killed run resumes from its checkpoints."""

from __future__ import annotations

import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ...atomic_write import atomic_write
from ...identity import tensors_digest
from ...safe_read import check_uncompressed

__all__ = [
    "CURRENT",
    "INCOMING",
    "PREVIOUS",
    "CheckpointError",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "save_weights",
]

CURRENT = "checkpoint.pt"
INCOMING = "checkpoint.incoming.pt"
PREVIOUS = "checkpoint.previous.pt"


class CheckpointError(RuntimeError):
    """The checkpoints or weights of a run exist, but cannot be read."""


def save_weights(
    model: nn.Module | dict[str, Tensor], path: Path | str, metadata: dict[str, Any] | None = None
) -> None:
    """Save a state dict as a safetensors file with metadata.

    Parameters
    ----------
    model : torch.nn.Module or dict of str to Tensor
        Model or state dict.
    path : path
        The .safetensors file.
    metadata : dict, optional
        Notes on the run; values are written as text. A digest of the weights is added.

    Raises
    ------
    OSError
        If the file cannot be written. The file before it is intact.
    """
    from safetensors.torch import save

    state = model.state_dict() if isinstance(model, nn.Module) else model
    # Cloned, since safetensors refuses tensors that share memory (tied embeddings).
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    notes = {**(metadata or {}), "digest": tensors_digest(tensors)}
    atomic_write(path, save(tensors, {key: str(value) for key, value in notes.items()}))


def save_checkpoint(directory: Path | str, state: dict[str, Any]) -> None:
    """Save the state of a run as ``checkpoint.pt``; the checkpoint before it becomes ``checkpoint.previous.pt``.

    Parameters
    ----------
    directory : path
        The run's directory.
    state : dict
        Tensors, numbers, strings, and lists and dicts of them.

    Raises
    ------
    OSError
        If the file cannot be written. The checkpoints before it are intact.
    """
    directory = Path(directory)
    atomic_write(directory / INCOMING, lambda file: _save(state, file))
    # Between the two renames there is no current checkpoint. A run that is killed there resumes from the incoming one.
    # A file is missing if there is no earlier checkpoint, or if another process that writes here has just moved it.
    for source, target in ((CURRENT, PREVIOUS), (INCOMING, CURRENT)):
        with suppress(FileNotFoundError):
            (directory / source).replace(directory / target)


def _save(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # Torch closes its archive after a write that failed, and that raises another error.
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise (cause or error) from None


def load_checkpoint(directory: Path | str) -> dict[str, Any] | None:
    """Newest readable checkpoint of a run's directory; None if there are no checkpoints.

    Parameters
    ----------
    directory : path
        The run's directory.

    Returns
    -------
    dict or None
        The state that `save_checkpoint` was given, with its tensors on the CPU.

    Raises
    ------
    CheckpointError
        If there are checkpoints, but none can be read.

    Warns
    -----
    UserWarning
        If the newest checkpoint is damaged and the one before it is used.
    """
    damaged: list[str] = []
    for path in (Path(directory) / name for name in (CURRENT, INCOMING, PREVIOUS)):
        if not path.exists():
            continue
        try:
            state = _read(path)
        except FileNotFoundError:  # another process has just moved it
            continue
        except Exception as error:  # damaged bytes can raise any error
            damaged.append(f"{path} ({_first_line(error)})")
            continue
        if damaged:
            warnings.warn(f"The checkpoint {damaged[0]} is damaged; the run resumes from {path}.", stacklevel=2)
        return state
    if damaged:
        raise CheckpointError(
            f"No checkpoint can be read: {'; '.join(damaged)}. Delete the files or pass resume=False to start again."
        )
    return None


def has_checkpoint(directory: Path | str) -> bool:
    """Whether a run's directory holds a checkpoint."""
    return any((Path(directory) / name).exists() for name in (CURRENT, INCOMING, PREVIOUS))


def _read(path: Path) -> dict[str, Any]:
    check_uncompressed(path)
    with zipfile.ZipFile(path) as archive:
        # torch.load does not verify the checksums: a flipped bit would silently become a wrong weight.
        if (member := archive.testzip()) is not None:
            raise ValueError(f"checksum of {member} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: BaseException, lines: int = 1) -> str:
    text = "; ".join(line.strip() for line in str(error).splitlines()[:lines] if line.strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
