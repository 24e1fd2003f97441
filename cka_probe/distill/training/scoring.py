"""Score a classifier on the test data, over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from ..taps.tapped_model import TappedModel
from .batches import split_batch
from .evaluation import Evaluation
from .seen_data import SeenData
from .steps import same_buffers

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Scorer"]


class Scorer:
    """Score a network on the test data: accuracy, and the further columns of an `Evaluation`.

    Parameters
    ----------
    loader : DataLoader
        Prepared by the accelerator.
    classes : int
        Length of the logits.
    accelerator : Accelerator
        Gathers the outputs of all processes.
    evaluation : Evaluation
        Names the columns.

    Raises
    ------
    ValueError
        If a column asks for more of the largest logits than there are classes.
    """

    def __init__(self, loader: DataLoader[Any], classes: int, accelerator: Accelerator, evaluation: Evaluation) -> None:
        for name, rank in evaluation.ranks.items():
            if rank > classes:
                raise ValueError(f"`columns` of Evaluation has {name!r}, but the student has {classes} classes.")
        self._loader = loader
        self._classes = classes
        self._accelerator = accelerator
        self._ranks = evaluation.ranks
        self._loss = "loss" in evaluation.columns

    def __call__(self, network: nn.Module, seen: SeenData | None = None) -> dict[str, float]:
        """Scores by the names of their columns. The network is left in eval mode.

        Parameters
        ----------
        network : torch.nn.Module
            A `TappedModel`, or a network that returns logits.
        seen : SeenData, optional
            The samples are added to it.
        """
        from torchmetrics.classification import MulticlassAccuracy  # takes seconds to import

        accelerator, device = self._accelerator, self._accelerator.device
        options: Any = {"average": "micro", "validate_args": False, "sync_on_compute": False}
        right = {
            name: MulticlassAccuracy(self._classes, top_k=rank, **options).to(device)
            for name, rank in {"accuracy": 1, **self._ranks}.items()
        }
        model = network if isinstance(network, TappedModel) else TappedModel(network, role="student")
        model.eval()
        same_buffers(model, accelerator)
        loss, count = torch.zeros((), device=device), 0
        with torch.no_grad():
            for batch in self._loader:
                inputs, target = split_batch(batch)
                if seen is not None:
                    seen.add((inputs, target))
                with accelerator.autocast():
                    logits = model(inputs).logits
                logits, target = accelerator.gather_for_metrics((logits, target))
                for name, metric in right.items():
                    metric.update(logits.argmax(1) if name == "accuracy" else logits, target)
                if self._loss:
                    loss = loss + functional.cross_entropy(logits.float(), target, reduction="sum")
                    count += len(target)
        scores = {f"test_{name}": float(metric.compute()) for name, metric in right.items()}
        return scores | ({"test_loss": float(loss) / count} if self._loss else {})
