"""Progress of a run: position, history, sums since the last row, and everything that a resumed run needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .seen_data import SeenData

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["RunState", "checked_total"]


class RunState:
    """Progress of a run of any kind.

    Parameters
    ----------
    saved : dict, optional
        From `state` of an earlier process.
    rank : int
        Rank of this process.

    Attributes
    ----------
    epoch, step : int
        Finished epochs, and finished steps of the current epoch.
    rows, diagnostics : list of dict
        The history and the measurements so far.
    random : list or None
        The random states of every process in the middle of an epoch; None at its start, where the seed decides them.
    seconds : float
        Time that earlier processes spent on the current row of the history.
    scores : dict of str to float
        Scores on the test data of a run that is scored once, at its end.
    notes : tuple of str
        Where the run was resumed.
    seen : dict of str to SeenData
        Digests of the samples that this process has read: "train" and "test".
    parts : dict of str to objects
        Further objects with ``state_dict`` and ``load_state_dict``, whose states are saved and loaded: learning rates,
        the average of the weights.
    """

    def __init__(self, saved: dict[str, Any] | None = None, rank: int = 0) -> None:
        saved = saved or {}
        self._saved = saved
        self.epoch: int = saved.get("epoch", 0)
        self.step: int = saved.get("step", 0)
        self.rows: list[dict[str, float]] = saved.get("rows", [])
        self.diagnostics: list[dict[str, Any]] = saved.get("diagnostics", [])
        self.random: list[dict[str, Any]] | None = saved.get("random")
        self.seconds: float = saved.get("seconds", 0.0)
        self.scores: dict[str, float] = saved.get("scores", {})
        self.notes: tuple[str, ...] = tuple(saved.get("notes", ()))
        self.parts: dict[str, Any] = {}
        # In float64 on the device, so that no step waits for the device.
        self._sums: dict[str, Tensor] = saved["sums"][rank] if saved else {}
        self.saved_seen: dict[str, Any] = {name: of_all[rank] for name, of_all in saved.get("seen", {}).items()}
        self.seen = {name: SeenData(self.saved_seen.get(name)) for name in ("train", "test")}
        if saved:
            self.notes += (f"resumed after epoch {self.epoch}, step {self.step}",)

    def load(self, student: nn.Module, loss: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
        """Load the saved weights and the saved state of the optimiser.

        Raises
        ------
        ValueError
            If the checkpoint belongs to another network than ``student``.
        """
        try:
            student.load_state_dict(self._saved["student"])
        except RuntimeError as error:
            raise ValueError(
                f"The checkpoint is of another student than this {type(student).__name__}: "
                f"{str(error).splitlines()[-1].strip()} Use another output_dir, or resume=False to start again."
            ) from error
        loss.load_state_dict(self._saved["loss"])
        for name, part in self.parts.items():
            part.load_state_dict(self._saved["parts"][name])
        optimizer.load_state_dict(self._saved["optimizer"])
        if accelerator.scaler is not None and self._saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(self._saved["scaler"])
        self._sums = {name: value.to(accelerator.device) for name, value in self._sums.items()}
        self._saved = {}

    def state(self, student: nn.Module, loss: nn.Module, optimizer: Any, accelerator: Accelerator) -> dict[str, Any]:
        """Everything that a later process needs, as tensors and plain values. Every process must call it."""
        from accelerate.utils import gather_object

        # The sums and digests of every process: each has read its own part of the batches.
        sums = gather_object([{name: value.cpu() for name, value in self._sums.items()}])
        seen = {name: gather_object([list(digest.state())]) for name, digest in self.seen.items()}
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "diagnostics": self.diagnostics,
            "random": self.random,
            "seconds": self.seconds,
            "scores": self.scores,
            "notes": list(self.notes),
            "sums": sums,
            "seen": seen,
            "student": student.state_dict(),
            "loss": loss.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "optimizer": optimizer.state_dict(),
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }

    def add(self, values: dict[str, Tensor], count: int, device: torch.device) -> None:
        """Count a finished step: add its numbers to the sums.

        Parameters
        ----------
        values : dict of str to Tensor
            Scalars that are sums over the samples or steps that ``count`` counts.
        count : int
            How many samples or steps the values sum up.
        device : torch.device
            Where the sums are kept.
        """
        wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        values = {"count": torch.full((), count, dtype=wide, device=device), **values}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().to(wide)
        self.step += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each value since the last row of the history, over all processes."""
        totals = accelerator.reduce(torch.stack(list(self._sums.values()))).tolist()
        sums = dict(zip(self._sums, totals, strict=True))
        count = sums.pop("count")
        return {name: value / count for name, value in sums.items()}

    def add_row(self, row: dict[str, float]) -> None:
        """Add a row to the history. The sums start again at zero."""
        self.rows.append(row)
        self._sums = {}

    def next_epoch(self) -> None:
        """Count a finished epoch. The next one starts at step 0, with random states from the seed."""
        self.epoch += 1
        self.step, self.random = 0, None


def checked_total(terms: dict[str, float], where: str, remedy: str) -> float:
    """Sum of the means of the loss terms.

    Parameters
    ----------
    terms : dict of str to float
        Mean of each weighted term.
    where : str
        "in epoch 3" or "at step 50", for the message.
    remedy : str
        What the user can do, besides a lower learning rate.

    Raises
    ------
    FloatingPointError
        If the sum is not finite.
    """
    total = sum(terms.values())
    if not math.isfinite(total):
        listed = ", ".join(f"{name} {value}" for name, value in terms.items())
        raise FloatingPointError(
            f"The training loss is {total} {where} ({listed}). Lower the learning rate, or {remedy}."
        )
    return total
