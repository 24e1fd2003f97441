"""Where a run stands: finished epochs, sums of the current one, and all that a later process needs to go on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .batches import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["RunState"]


class RunState:
    """Where a run stands.

    Parameters
    ----------
    saved : dict, optional
        From `state` of an earlier process.

    Attributes
    ----------
    epoch, step : int
        Finished epochs, and finished steps of the current one.
    rows, diagnostics : list of dict
        The history and the measurements so far.
    random : list or None
        The random states of every process in the middle of an epoch; None at its start, where they follow from the
        seed.
    seconds : float
        Spent on the current epoch by earlier processes.
    notes : tuple of str
        Where the run was resumed.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {}
        self._saved = saved
        self.epoch: int = saved.get("epoch", 0)
        self.step: int = saved.get("step", 0)
        self.rows: list[dict[str, float]] = saved.get("rows", [])
        self.diagnostics: list[dict[str, Any]] = saved.get("diagnostics", [])
        self.random: list[dict[str, Any]] | None = saved.get("random")
        self.seconds: float = saved.get("seconds", 0.0)
        self.notes: tuple[str, ...] = tuple(saved.get("notes", ()))
        # Sums over samples, in float64 on the device, so that a step waits for nothing.
        self._sums: dict[str, Tensor] = saved.get("sums", {})
        if saved:
            self.notes += (f"resumed after epoch {self.epoch}, step {self.step}",)

    def load(self, student: nn.Module, loss: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
        """Puts the saved weights and optimiser state back.

        Raises
        ------
        ValueError
            If the student is not the network that was saved.
        """
        try:
            student.load_state_dict(self._saved["student"])
        except RuntimeError as error:
            raise ValueError(
                f"The checkpoint is of another student than this {type(student).__name__}: "
                f"{str(error).splitlines()[-1].strip()} Use another output_dir, or resume=False to start again."
            ) from error
        loss.load_state_dict(self._saved["loss"])
        optimizer.load_state_dict(self._saved["optimizer"])
        if accelerator.scaler is not None and self._saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(self._saved["scaler"])
        self._sums = {name: value.to(accelerator.device) for name, value in self._sums.items()}
        self._saved = {}

    def state(self, student: nn.Module, loss: nn.Module, optimizer: Any, accelerator: Accelerator) -> dict[str, Any]:
        """All that a later process needs, as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "diagnostics": self.diagnostics,
            "random": self.random,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "sums": self._sums,
            "student": student.state_dict(),
            "loss": loss.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }

    def add(self, batch: Batch, logits: Tensor, terms: dict[str, Tensor]) -> None:
        """Counts a finished step."""
        wide = torch.float32 if logits.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        values = {"samples": torch.full((), len(batch), dtype=wide, device=logits.device)}
        values["right"] = (logits.argmax(1) == batch.target).sum()
        values |= {f"term {name}": term * len(batch) for name, term in terms.items()}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.to(wide)
        self.step += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means of the epoch over all processes: train_loss, each term, train_accuracy.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        """
        totals = accelerator.reduce(torch.stack(list(self._sums.values()))).tolist()
        sums = dict(zip(self._sums, totals, strict=True))
        samples = sums.pop("samples")
        accuracy = sums.pop("right") / samples
        terms = {name.removeprefix("term "): value / samples for name, value in sums.items()}
        total = sum(terms.values())
        if not math.isfinite(total):
            listed = ", ".join(f"{name} {value}" for name, value in terms.items())
            raise FloatingPointError(
                f"The training loss is {total} in epoch {self.epoch + 1} ({listed}). Lower the learning rate, or the "
                "weight of the term that is not finite."
            )
        return {"train_loss": total, **terms, "train_accuracy": accuracy}

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Adds the epoch's line to the history; the next epoch starts at step 0."""
        self.rows.append(row)
        self.epoch += 1
        self.step, self.random, self.seconds, self._sums = 0, None, 0.0, {}
