"""Save the state of an unfinished comparison to a file, and load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..atomic_write import atomic_write, remove_leftovers
from ..capture.progress import Progress
from ..safe_read import open_npz
from .packed import packed, unpacked
from .run_identity import check_same_run

__all__ = ["CHECKPOINT_EVERY", "FORMAT", "Checkpoint", "remove_checkpoint"]

CHECKPOINT_EVERY = 20
"""Batches between two saves of a comparison with ``checkpoint=``."""

FORMAT = "cka_probe.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a comparison, from which it can continue.

    Attributes
    ----------
    progress : Progress
        Of the pass. In the minibatch scope its first held object is a ``MinibatchPass``.
    identity, sizes, settings : mapping
        Of the comparison, its data and its models, from ``comparison_identity``, ``data_size`` and
        ``module_settings``.
    state : mapping
        What else the comparison goes on from, as ``packed`` takes it.
    """

    progress: Progress
    identity: Mapping[str, str]
    sizes: Mapping[str, int]
    settings: Mapping[str, str]
    state: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_same_run(
        cls,
        path: Path,
        device: torch.device,
        identity: Mapping[str, str],
        sizes: Mapping[str, int],
        settings: Mapping[str, str],
    ) -> Self:
        """Read the checkpoint of an earlier run of the comparison with these ingredients.

        Raises
        ------
        ValueError
            If the file is not a checkpoint, belongs to another comparison, or cannot be resumed; the message says why.
        """
        saved = cls.load(path, device)
        changed = {name for own in saved.progress.changed for name in own}
        before, now = (
            {name: text for name, text in found.items() if name.partition(" of ")[0] not in changed}
            for found in (saved.settings, settings)
        )
        check_same_run(path, saved.identity, identity, saved.sizes, sizes, before, now)
        if saved.progress.refused:
            raise ValueError(
                f"{path} cannot be resumed. {saved.progress.refused}, which no file can hold. Delete it to start again."
            )
        return saved

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all. Raise OSError if it cannot be written."""
        arrays: dict[str, Any] = {}
        given, sums = self.progress, {}
        if given.held:
            own = dict(given.held[0])
            sums = own.pop("sums")
            given = replace(given, held=[own])
        progress = {part.name: packed(getattr(given, part.name), arrays) for part in fields(Progress)}
        header = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "sizes": dict(self.sizes),
            "settings": dict(self.settings),
            "progress": progress,
            "state": packed(self.state, arrays),
        }
        arrays |= {f"sum_{name}": total.cpu().numpy() for name, total in sums.items()}
        atomic_write(path, lambda file: np.savez(file, header=np.array(json.dumps(header)), **arrays))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        """Read the file, with the sums on ``device`` and other tensors on the CPU.

        Raises
        ------
        ValueError
            If the file is not a checkpoint of a comparison, or is damaged.
        """
        ours = False
        try:
            with open_npz(path) as archive:
                header = archive.header()
                ours = header["format"] == FORMAT
                if not ours:
                    raise KeyError("format")
                if "identity" not in header:
                    raise ValueError("version 0.1 of cka_probe wrote it, which did not save what it was made of")
                progress = Progress(**{key: unpacked(part, archive) for key, part in header["progress"].items()})
                if progress.held:
                    progress.held[0]["sums"] = {
                        name.removeprefix("sum_"): torch.from_numpy(archive[name]).to(device)
                        for name in archive
                        if name.startswith("sum_")
                    }
                state = unpacked(header.get("state", {"dict": []}), archive)
            return cls(progress, header["identity"], header["sizes"], header["settings"], state)
        except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if ours:
                raise ValueError(f"The checkpoint {path} is damaged ({error}). Delete it to start again.") from error
            raise ValueError(
                f"{path} is not a checkpoint of a comparison, or is damaged ({error}). Give another path as "
                "`checkpoint`, or delete it if you do not need it."
            ) from error


def remove_checkpoint(path: Path) -> None:
    """Remove the file of a comparison that is done, and what a kill in the middle of writing it has left."""
    path.unlink(missing_ok=True)
    remove_leftovers(path)
