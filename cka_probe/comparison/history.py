"""Compare a model in training with a reference model, by hand or from Lightning or the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from torch import nn

from ..capture.extras import require
from ..capture.layers import unwrap
from ..similarity.matrix import SimilarityMatrix
from .models import compare

__all__ = ["SimilarityHistory", "lightning_callback", "trainer_callback"]


class SimilarityHistory:
    """The similarity of a model in training to a reference model, at each measured step.

    Parameters
    ----------
    reference : torch.nn.Module
        Rows of the results: for example a teacher, or a copy of the network before training.
    data : iterable of batches
        It must give the same samples every time: a list of batches, or a DataLoader without shuffling.
    **settings
        Options of ``compare``, for example layers, layers_y, kernel, pooling or forward.

    Attributes
    ----------
    matrices : dict of int to SimilarityMatrix
        The results by training step.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> history = SimilarityHistory(net, [torch.randn(16, 8)])
    >>> history.measure(net, step=0).shape
    (2, 2)
    """

    def __init__(self, reference: nn.Module, data: Iterable[Any], **settings: Any) -> None:
        self.reference = reference
        self.data = data
        self.settings = {"progress": False, **settings}
        self.matrices: dict[int, SimilarityMatrix] = {}

    def measure(self, model: nn.Module, step: int) -> SimilarityMatrix:
        """Compare ``model`` as it is now with the reference, and store the result under ``step``.

        Raises
        ------
        ValueError, TypeError, CaptureError, ModuleNotFoundError, RuntimeError, OSError
            As ``compare``.
        """
        self.matrices[step] = compare(self.reference, unwrap(model), self.data, **self.settings)
        return self.matrices[step]

    def to_frame(self) -> pd.DataFrame:
        """All values so far, one per line: columns step, row, column, value and standard_error (NaN if unknown)."""
        parts = []
        for step, matrix in self.matrices.items():
            error = matrix.standard_error
            parts.append(
                pd.DataFrame(
                    {
                        "step": step,
                        "row": [row for row in matrix.rows for _ in matrix.columns],
                        "column": list(matrix.columns) * len(matrix.rows),
                        "value": matrix.values.ravel(),
                        "standard_error": float("nan") if error is None else error.ravel(),
                    }
                )
            )
        columns = ["step", "row", "column", "value", "standard_error"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def trainer_callback(history: SimilarityHistory) -> Any:
    """A callback for the Hugging Face Trainer that measures the model after every evaluation.

    Parameters
    ----------
    history : SimilarityHistory
        Receives the results by global step.

    Returns
    -------
    transformers.TrainerCallback
        For ``Trainer(callbacks=[...])``. It measures on the main process only.

    Raises
    ------
    ModuleNotFoundError
        If transformers is not installed.
    """
    require("transformers", "hf", "trainer_callback()")
    from transformers import TrainerCallback

    class MeasureSimilarity(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of the Trainer
            if state.is_world_process_zero:
                history.measure(kwargs["model"], state.global_step)

    return MeasureSimilarity()


def lightning_callback(history: SimilarityHistory) -> Any:
    """A callback for Lightning that measures the model at the end of every validation epoch.

    Parameters
    ----------
    history : SimilarityHistory
        Receives the results by global step. Layers are named as in the LightningModule.

    Returns
    -------
    lightning.pytorch.Callback
        For ``Trainer(callbacks=[...])``. It measures on the main process only, and not in the sanity check.

    Raises
    ------
    ModuleNotFoundError
        If lightning is not installed.
    """
    require("lightning", None, "lightning_callback()")
    from lightning.pytorch import Callback

    class MeasureSimilarity(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
            if trainer.is_global_zero and not trainer.sanity_checking:
                history.measure(pl_module, trainer.global_step)

    return MeasureSimilarity()
