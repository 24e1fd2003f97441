"""Save the state of an unfinished comparison to a file, and load it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..atomic_write import atomic_write
from ..safe_read import open_npz

__all__ = ["FORMAT", "Checkpoint"]

FORMAT = "cka_probe.checkpoint"

OWN = ("done", "order", "layers", "keepers", "notes", "identity", "sizes")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a comparison after ``done`` batches, from which it can continue.

    Attributes
    ----------
    done : int
        Number of batches in the statistics.
    order : str
        Digest of the samples in these batches, from ``SampleOrder``.
    layers : list of (str, list of str, dict of str to str)
        For each model its name, its layers, and the layers that were left out with the reason.
    keepers : list of dict
        For each model ``GramKeeper.state()``.
    notes : list of str
        Notes so far.
    identity, sizes : dict
        Of the comparison and its data, from ``comparison_identity`` and ``data_size``.
    statistics : dict
        ``MinibatchCKA.state_dict()``.
    """

    done: int
    order: str
    layers: list[Any]
    keepers: list[dict[str, Any]]
    notes: list[str]
    identity: dict[str, str]
    sizes: dict[str, int]
    statistics: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all. Raise OSError if it cannot be written."""
        state = dict(self.statistics)
        sums: dict[str, Any] = {f"sum_{name}": total.cpu().numpy() for name, total in state.pop("sums").items()}
        header = {
            **state,
            "format": FORMAT,
            "done": self.done,
            "order": self.order,
            "layers": self.layers,
            "keepers": self.keepers,
            "notes": self.notes,
            "identity": self.identity,
            "sizes": self.sizes,
        }
        atomic_write(path, lambda file: np.savez(file, header=np.array(json.dumps(header)), **sums))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        """Read the file, with the statistics on ``device``.

        Raises
        ------
        ValueError
            If the file is not a checkpoint of a comparison, or is damaged.
        """
        ours = False
        try:
            with open_npz(path) as archive:
                header = archive.header()
                ours = header.pop("format") == FORMAT
                if not ours:
                    raise KeyError("format")
                sums = {
                    name.removeprefix("sum_"): torch.from_numpy(archive[name]).to(device)
                    for name in archive
                    if name != "header"
                }
            if "identity" not in header:
                raise ValueError("version 0.1 of cka_probe wrote it, which did not save what it was made of")
            own = {key: header.pop(key) for key in OWN}
        except (OSError, KeyError, TypeError, ValueError) as error:
            if ours:
                raise ValueError(f"The checkpoint {path} is damaged ({error}). Delete it to start again.") from error
            raise ValueError(
                f"{path} is not a checkpoint of a comparison, or is damaged ({error}). Give another path as "
                "`checkpoint`, or delete it if you do not need it."
            ) from error
        return cls(**own, statistics={**header, "sums": sums})
