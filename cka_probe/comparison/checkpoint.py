"""Save the state of an unfinished comparison to a file, and load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..atomic_write import atomic_write
from ..capture.progress import Progress
from ..safe_read import open_npz
from .packed import packed, unpacked

__all__ = ["FORMAT", "Checkpoint"]

FORMAT = "cka_probe.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a comparison, from which it can continue.

    Attributes
    ----------
    progress : Progress
        Of the pass, whose first held object is a ``MinibatchPass``.
    identity, sizes, settings : mapping
        Of the comparison, its data and its models, from ``comparison_identity``, ``data_size`` and
        ``module_settings``.
    """

    progress: Progress
    identity: Mapping[str, str]
    sizes: Mapping[str, int]
    settings: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all. Raise OSError if it cannot be written."""
        arrays: dict[str, Any] = {}
        own = dict(self.progress.held[0])
        sums = own.pop("sums")
        given = replace(self.progress, held=[own])
        progress = {field.name: packed(getattr(given, field.name), arrays) for field in fields(Progress)}
        header = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "sizes": dict(self.sizes),
            "settings": dict(self.settings),
            "progress": progress,
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
                progress.held[0]["sums"] = {
                    name.removeprefix("sum_"): torch.from_numpy(archive[name]).to(device)
                    for name in archive
                    if name.startswith("sum_")
                }
            return cls(progress, header["identity"], header["sizes"], header["settings"])
        except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if ours:
                raise ValueError(f"The checkpoint {path} is damaged ({error}). Delete it to start again.") from error
            raise ValueError(
                f"{path} is not a checkpoint of a comparison, or is damaged ({error}). Give another path as "
                "`checkpoint`, or delete it if you do not need it."
            ) from error
