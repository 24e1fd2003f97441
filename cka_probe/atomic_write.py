"""The one function that writes files: a path holds either the old file or the whole new one."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic_write", "remove_leftovers"]


def atomic_write(path: str | os.PathLike[str], content: bytes | str | Callable[[BinaryIO], Any]) -> None:
    r"""Write a file so that its path holds either the old file or the whole new one, even after a crash.

    The content goes to a temporary file in the same folder, whose name holds the process number. That file is flushed
    to the disk and renamed, and the folder is flushed too. Several threads and processes may write the same path: the
    last one wins, and no reader sees a mixture. A link is followed; a device such as /dev/null is written directly.

    Parameters
    ----------
    path : path
        Where the file goes. Its folder must exist.
    content : bytes, str or callable
        Text is encoded as UTF-8. A callable receives the open binary file and writes into it; its exceptions pass.

    Raises
    ------
    OSError
        If the file cannot be written: the folder is missing or read-only, the disk is full. The error keeps its class
        and number, names the path, and says what to do. The file that was there before is intact, and no temporary
        file stays behind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(Path(folder) / "notes.txt", "two lines\n")
    ...     (Path(folder) / "notes.txt").read_text()
    'two lines\n'
    """
    asked = Path(path)
    target = Path(os.path.realpath(asked))
    try:
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            with target.open("wb") as device:
                _fill(device, content)
            return
        _replace(target, content)
    except OSError as error:
        raise type(error)(error.errno, _explain(asked, target, error)) from error


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of writers of ``path`` that were killed. Nobody may be writing it now."""
    target = Path(os.path.realpath(path))
    named = re.compile(re.escape(_beginning(target)) + r"\d+\.[0-9a-f]{8}\.tmp")
    for found in target.parent.iterdir() if target.parent.is_dir() else ():
        if named.fullmatch(found.name):
            found.unlink(missing_ok=True)


def _beginning(target: Path) -> str:
    return f".{target.name[:60]}."


def _replace(target: Path, content: bytes | str | Callable[[BinaryIO], Any]) -> None:
    # File systems allow names of at most 255 bytes.
    temporary = target.with_name(f"{_beginning(target)}{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        # With 0o666 the umask of the process decides who may read the file, as for any new file.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            _fill(file, content)
            file.flush()
            os.fsync(file.fileno())
        if (mode := _mode(target)) is not None:
            temporary.chmod(mode & 0o777)
        os.replace(temporary, target)  # noqa: PTH105 - tests of a full disk patch this name
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _mode(target: Path) -> int | None:
    """Kind and permissions of what is there; None if nothing is. One look: another writer may rename it at any time."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None


def _fill(file: BinaryIO, content: bytes | str | Callable[[BinaryIO], Any]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def _flush_folder(folder: Path) -> None:
    """Make the rename survive a power cut, where the system can flush a folder (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _explain(asked: Path, target: Path, error: OSError) -> str:
    folder = target.parent
    if isinstance(error, FileNotFoundError):
        reason = f"the folder {folder} does not exist. Create it, or choose another path"
    elif isinstance(error, NotADirectoryError):
        reason = f"{folder} is a file, not a folder. Choose another path"
    elif isinstance(error, IsADirectoryError):
        reason = "it is a folder. Choose the path of a file"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = f"the folder {folder} is read-only for you. Choose another folder, or change its permissions"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full. Free some space. A file that was there before is intact"
    else:
        reason = f"{error.strerror or error}. A file that was there before is intact"
    return f"could not write {asked}: {reason}."
