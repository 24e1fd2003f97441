"""How alike the compared networks answer, from their outputs in the same pass (``outputs=True``)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..answers import disagreement, jensen_shannon_divergence
from ..capture.progress import Resumable
from ..capture.recorder import LayerRecorder
from ..capture.streaming import Pass
from .request import Request

__all__ = ["Answers"]

TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys of a dict batch that hold the classes."""


class Answers(Resumable):
    """Sums over the batches of how alike the networks answer.

    Parameters
    ----------
    recorders : sequence of LayerRecorder
        One for each network; they keep the output of each batch from now on.
    request : Request
        The options. Without ``outputs`` nothing is added up and nothing found.
    """

    lasting = ("_sums", "_samples", "_with_target", "_unfit")

    def __init__(self, recorders: Sequence[LayerRecorder], request: Request) -> None:
        self.recorders = recorders
        self.asked = request.outputs
        for recorder in recorders:
            recorder.keeps_output = self.asked
        self.many = request.square
        ends = (0, len(recorders) - 1)
        self.pairs = list(itertools.combinations(range(len(recorders)), 2)) if self.many else [ends]
        self._sums: dict[str, torch.Tensor] = {}
        self._samples = 0
        self._with_target = 0
        self._unfit: dict[str, str] = {}

    def after(self, run: Pass, consume: Callable[..., None]) -> Callable[..., None]:
        """``consume``, which then also adds the answers of the batch."""
        if not self.asked:
            return consume

        def both(index: int, kept: list[list[Any]], samples: int) -> None:
            consume(index, kept, samples)
            self._add(run.batch)

        return both

    def _add(self, batch: Any) -> None:
        outputs = [recorder.output for recorder in self.recorders]
        for recorder in self.recorders:
            recorder.output = None
        if self._unfit:
            return
        logits = []
        for recorder, output in zip(self.recorders, outputs, strict=True):
            found = class_scores(output)
            if isinstance(found, str):
                self._unfit = {recorder.name: found}
                return
            logits.append(found.detach().double().cpu())
        if len({tuple(z.shape) for z in logits}) > 1:
            shapes = " and ".join(f"{tuple(z.shape)} of {r.name}" for z, r in zip(logits, self.recorders, strict=True))
            self._unfit = {self.recorders[-1].name: f"the networks answer different questions: outputs {shapes}"}
            return
        n, classes = logits[0].shape
        if not all(bool(torch.isfinite(z).all()) for z in logits):
            self._unfit = {self.recorders[0].name: "an output holds NaN or infinity"}
            return
        target = classes_of(batch, n, classes)
        sums = dict(self._sums)  # replaced, never changed in place

        def add(name: str, value: Any) -> None:
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + float(value)

        for i, j in self.pairs:
            add(f"disagreement {i} {j}", n * disagreement(logits[i], logits[j]))
            add(f"divergence {i} {j}", n * jensen_shannon_divergence(logits[i], logits[j]))
        if target is not None:
            right = [z.argmax(1) == target for z in logits]
            for i, one in enumerate(right):
                add(f"right {i}", one.sum())
            for i, j in self.pairs:
                add(f"same {i} {j}", (right[i] == right[j]).sum())
            self._with_target += n
        self._sums = sums
        self._samples += n

    def all_reduce(self) -> None:
        """Add up the sums of all processes of torch.distributed."""
        if not self.asked:
            return
        import torch.distributed as dist

        gathered: list[Any] = [None] * dist.get_world_size()
        mine = ({key: float(total) for key, total in self._sums.items()}, self._samples, self._with_target, self._unfit)
        dist.all_gather_object(gathered, mine)
        keys = dict.fromkeys(key for sums, *_ in gathered for key in sums)
        self._sums = {key: torch.tensor(sum(sums.get(key, 0.0) for sums, *_ in gathered)).double() for key in keys}
        self._samples, self._with_target = (sum(part[place] for part in gathered) for place in (1, 2))
        for *_, unfit in gathered:
            self._unfit = self._unfit or unfit

    def notes(self) -> list[str]:
        """Why there are no answers, or none with targets."""
        if self._unfit:
            return [f"{name}: the answers were not compared: {why}" for name, why in self._unfit.items()]
        if self._samples and self._with_target < self._samples:
            return [
                f"{self._samples - self._with_target} of {self._samples} samples have no class in the data, so "
                "accuracies and error consistency " + ("leave them out" if self._with_target else "are not known")
            ]
        return []

    def found(self) -> dict[str, Any]:
        """What ``meta["answers"]`` holds: one dict, or for ``compare_many`` a list with one for each pair of models."""
        if self._unfit or not self._samples:
            return {}
        pairs = [self._pair(i, j) for i, j in self.pairs]
        names = [recorder.name for recorder in self.recorders]
        if not self.many:
            return {"answers": pairs[0]}
        named = [{"models": [names[i], names[j]], **pair} for (i, j), pair in zip(self.pairs, pairs, strict=True)]
        return {"answers": named}

    def _pair(self, i: int, j: int) -> dict[str, float]:
        sums, n, m = self._sums, self._samples, self._with_target
        found: dict[str, float] = {
            "samples": n,
            "disagreement": float(sums[f"disagreement {i} {j}"]) / n,
            "jensen_shannon_divergence": float(sums[f"divergence {i} {j}"]) / n,
        }
        if m:
            a, b, same = (float(sums[key]) / m for key in (f"right {i}", f"right {j}", f"same {i} {j}"))
            chance = a * b + (1 - a) * (1 - b)
            found |= {"accuracy_x": a, "accuracy_y": b, "accuracy_difference": a - b}
            if chance < 1:  # else both are always right, or both always wrong
                found["error_consistency"] = (same - chance) / (1 - chance)
        return found


def class_scores(output: Any) -> torch.Tensor | str:
    """Scores (samples, classes) in the output of a network, or the reason why there are none."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(getattr(output, "logits", None), torch.Tensor):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        return f"its output is no tensor of class scores but {type(output).__name__}"
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return f"its output of shape {tuple(output.shape)} holds no scores (samples, classes)"
    return output


def classes_of(batch: Any, samples: int, classes: int) -> torch.Tensor | None:
    """The class of each sample (samples,) in the batch as int64 on the CPU; None if it does not hold them."""
    found: Any = None
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in TARGETS if key in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        found = batch[1]
    if found is None or isinstance(found, str | Mapping):
        return None
    try:
        target = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    if target.shape == (samples, 1):
        target = target[:, 0]
    if target.shape != (samples,) or target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        return None
    target = target.long().cpu()
    inside = bool(((target >= 0) & (target < classes)).all())
    return target if inside else None
