"""What a run writes: weights, and checkpoints that a killed run goes on from.

Every file is written whole: into a temporary file beside it, flushed to disk, then renamed. A crash or a full disk at
any moment leaves the file that was there before.
"""

from __future__ import annotations

import io
import os
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint", "save_weights", "write_whole"]

CURRENT = "checkpoint.pt"
INCOMING = "checkpoint.incoming.pt"
PREVIOUS = "checkpoint.previous.pt"


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be read, although there are files of that name."""


def write_whole(path: Path | str, content: bytes | str) -> None:
    """Writes a file so that at any moment there is either the old one or the new one, never a part.

    Parameters
    ----------
    path : path
        Where to.
    content : bytes or str
        Text is encoded as UTF-8.

    Raises
    ------
    OSError
        If it cannot be written, a full disk say; the file that was there before is intact.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; these are results like any other
        os.replace(temporary, path)  # noqa: PTH105 - atomic, and patched by the tests of a full disk
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise type(error)(
                error.errno, f"could not write {path} ({error.strerror or error}); the file before it is intact"
            ) from error
        raise


def save_weights(
    model: nn.Module | dict[str, Tensor], path: Path | str, metadata: dict[str, Any] | None = None
) -> None:
    """Saves a state dict as safetensors, with notes on where it comes from.

    Parameters
    ----------
    model : torch.nn.Module or dict of str to Tensor
        The model, or its state dict.
    path : path
        The .safetensors file.
    metadata : dict, optional
        Values are written as text.

    Raises
    ------
    OSError
        If the file cannot be written; the one before it is intact.
    """
    from safetensors.torch import save

    state = model.state_dict() if isinstance(model, nn.Module) else model
    # Cloned, since safetensors refuses tensors that share memory (tied embeddings).
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    write_whole(path, save(tensors, {key: str(value) for key, value in (metadata or {}).items()}))


def save_checkpoint(directory: Path | str, state: dict[str, Any]) -> None:
    """Saves the state of a run as ``checkpoint.pt`` and keeps the one before it as ``checkpoint.previous.pt``.

    Parameters
    ----------
    directory : path
        The run's directory.
    state : dict
        Tensors, numbers, strings and lists and dicts of them.

    Raises
    ------
    OSError
        If there is no room; the checkpoints that were there are intact.
    """
    directory = Path(directory)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(directory / INCOMING, buffer.getvalue())
    # Between the two renames there is no current one; a run that is killed there goes on from the incoming one.
    if (directory / CURRENT).exists():
        (directory / CURRENT).replace(directory / PREVIOUS)
    (directory / INCOMING).replace(directory / CURRENT)


def load_checkpoint(directory: Path | str) -> dict[str, Any] | None:
    """The newest state in a run's directory that can be read, or None where there is none.

    Parameters
    ----------
    directory : path
        The run's directory.

    Returns
    -------
    dict or None
        As given to `save_checkpoint`, tensors on the CPU.

    Raises
    ------
    CheckpointError
        If there are checkpoints and none of them can be read.

    Warns
    -----
    UserWarning
        If the newest is damaged and the one before it is taken.
    """
    damaged: list[str] = []
    for path in (Path(directory) / name for name in (CURRENT, INCOMING, PREVIOUS)):
        if not path.exists():
            continue
        try:
            state = _read(path)
        except Exception as error:  # any failure to read means the same here, whatever the file's bytes provoke
            damaged.append(f"{path} ({_first_line(error)})")
            continue
        if damaged:
            warnings.warn(f"The checkpoint {damaged[0]} is damaged; going on from {path}.", stacklevel=2)
        return state
    if damaged:
        raise CheckpointError(
            f"No checkpoint can be read: {'; '.join(damaged)}. Delete the files or pass resume=False to start again."
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        # torch.load does not verify the checksums, so that a flipped bit would become a wrong weight in silence.
        if (member := archive.testzip()) is not None:
            raise ValueError(f"checksum of {member} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _first_line(error: BaseException, lines: int = 1) -> str:
    text = "; ".join(line.strip() for line in str(error).splitlines()[:lines] if line.strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
