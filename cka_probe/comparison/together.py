"""Processes that compare together: they begin with the same ingredients, and if one fails or is stopped, all end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..capture.notes import first_line
from .run_identity import processes_differ

__all__ = ["Ended", "Together", "joined_notes", "path_of_rank"]

LOOK_EVERY = 1.0
"""Seconds between two looks whether another process has failed."""


class Ended(NamedTuple):
    """What all processes say after their last batch: whether one was stopped by the user, and their notes."""

    interrupted: bool
    notes: list[str]


class Together:
    """The processes of torch.distributed that compare together, seen from this one.

    They meet before the first batch and after the last, over a whole data set also between. A process that fails takes
    part in its next meeting and says so, and then all raise. It also leaves a word in the store of the process group,
    where the others look about once a second between their batches.

    Parameters
    ----------
    distributed : bool
        Whether there are several processes. If not, nothing here does anything.

    Examples
    --------
    >>> with Together(False) as together:
    ...     together.start({})
    ...     together.end(interrupted=False, notes=["a note"]).notes
    ['a note']
    """

    def __init__(self, distributed: bool) -> None:
        self.rank, self.world = 0, 1
        self._active = distributed and _is_initialised()
        self._open = self._active
        self._key = ""
        self._told: RuntimeError | None = None
        """The error of another process, which this one raises."""
        self._looked = time.monotonic()
        if self._active:
            import torch.distributed as dist

            self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def __bool__(self) -> bool:
        return self._active

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._open:
            return
        text = f"{type(error).__name__}: {error}"
        self._leave_word(f"process {self.rank} failed: {text}")
        with suppress(RuntimeError):  # this process raises its own error
            self._meet(failed=None if error is self._told else text)

    def start(self, identity: Mapping[str, str]) -> None:
        """Meet before the first batch.

        Parameters
        ----------
        identity : mapping of str to str
            From ``comparison_identity``, in this process.

        Raises
        ------
        ValueError
            In every process, if one has other ingredients than the first.
        RuntimeError
            If another process has failed.
        """
        if not self._active:
            return
        gathered = self._meet((dict(identity), secrets.token_hex(8)))
        self._key = f"cka_probe/{gathered[0][1]}"
        if (problem := processes_differ([one for one, _ in gathered])) is not None:
            self._open = False  # all raise here
            raise ValueError(problem)

    def look(self) -> None:
        """Look whether another process has failed or was stopped, at most once a second.

        Raises
        ------
        RuntimeError
            If one has failed.
        KeyboardInterrupt
            If the user stopped one.
        """
        if not self._active or time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        store = _store()
        if store is None:
            return
        try:
            word = store.get(self._key).decode() if store.check([self._key]) else None
        except Exception as error:  # of the library, if the process that holds the store has ended
            raise self._other(f"A process of the comparison has ended ({first_line(error)}).") from error
        if word == _STOPPED:
            raise KeyboardInterrupt
        if word is not None:
            raise self._other(f"The comparison was stopped because {word}")

    def stop(self) -> None:
        """Tell the others that the user has stopped this process."""
        if self._active:
            self._leave_word(_STOPPED)

    def end(self, *, interrupted: bool, notes: Sequence[str]) -> Ended:
        """Meet after the last batch.

        Parameters
        ----------
        interrupted : bool
            Whether the user has stopped this process.
        notes : sequence of str
            The notes of this process.

        Returns
        -------
        Ended
            Of all processes. Notes that not all of them have begin with "process 1: ".

        Raises
        ------
        RuntimeError
            If another process has failed.
        """
        if not self._active:
            return Ended(interrupted, list(notes))
        gathered = self.meet((interrupted, list(notes)), last=True)
        return Ended(any(one for one, _ in gathered), joined_notes([own for _, own in gathered]))

    def meet(self, word: Any, *, last: bool = False) -> list[Any]:
        """Exchange words with all processes, between the first meeting and the ``last``.

        Raises
        ------
        RuntimeError
            If another process has failed.
        """
        if last:
            self._open = False
        return self._meet(word)

    def _other(self, message: str) -> RuntimeError:
        self._told = RuntimeError(message)
        return self._told

    def _leave_word(self, word: str) -> None:
        store = _store() if self._key else None
        if store is not None:
            try:
                if not store.check([self._key]):
                    store.set(self._key, word)
            except Exception:  # the process that holds the store has ended; its error is not ours
                return

    def _meet(self, word: Any = None, *, failed: str | None = None) -> list[Any]:
        """Exchange words with all processes. Raise RuntimeError if one has failed or is gone."""
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(gathered, (word, failed))
        except Exception as error:  # of the library
            self._open = False
            raise self._other(
                f"A process of the comparison has ended, or cannot be reached ({first_line(error)})."
            ) from error
        failures = [(rank, text) for rank, (_, text) in enumerate(gathered) if text is not None]
        if failures or any(one is None for one, _ in gathered):
            self._open = False
            rank, text = failures[0] if failures else (self.rank, "it has left")
            raise self._other(f"The comparison was stopped because process {rank} failed: {text}")
        return [one for one, _ in gathered]


_STOPPED = "stopped"


def path_of_rank(path: Path, together: Together) -> Path:
    """The file of this process: of "run.npz" with several processes "run.rank0.npz".

    Examples
    --------
    >>> path_of_rank(Path("run.npz"), Together(False)).name
    'run.npz'
    """
    return path.with_name(f"{path.stem}.rank{together.rank}{path.suffix}") if together else path


def joined_notes(notes: Sequence[Sequence[str]]) -> list[str]:
    """The notes of all processes, each once."""
    found: dict[str, None] = {}
    for rank, own in enumerate(notes):
        for note in own:
            common = all(note in others for others in notes)
            found.setdefault(note if common else f"process {rank}: {note}")
    return list(found)


def _is_initialised() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _store() -> Any:
    """The store by which the processes found each other; None if this version of torch does not show it."""
    from torch.distributed import distributed_c10d

    try:
        return distributed_c10d._get_default_store()
    except (AttributeError, RuntimeError, ValueError):
        return None
