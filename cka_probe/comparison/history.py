"""Compare a model in training with a reference model, by hand or from Lightning or the Hugging Face Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from ..capture.extras import require
from ..capture.layers import layer_parts, select_layers, unwrap
from ..capture.nearest import nearest_hint
from ..capture.networks import check_network
from ..similarity.matrix import SimilarityMatrix
from .models import compare
from .request import Request
from .sharing import sharing_notes, with_notes

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

    Raises
    ------
    TypeError
        If ``reference`` is not a network, an option is unknown or of the wrong kind, or ``data`` can be read only once.
    ValueError, ModuleNotFoundError, RuntimeError, OSError
        If the value of an option is unknown; as ``compare``.

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
        check_network(reference, "`reference`")
        if isinstance(data, Iterator):
            raise TypeError(
                f"`data` is a {type(data).__name__}, which can be read only once. Pass a list of batches or a "
                "DataLoader."
            )
        self.reference = reference
        self.data = data
        several = {name: list(value) for name, value in settings.items() if isinstance(value, Iterator)}
        self.settings = {"progress": False, **settings, **several}  # an iterator could be read only once
        _check_settings(reference, data, self.settings)
        self.matrices: dict[int, SimilarityMatrix] = {}

    def __repr__(self) -> str:
        if not self.matrices:
            return "<SimilarityHistory: nothing measured yet>"
        steps = list(self.matrices)
        first, last = self.matrices[steps[0]], self.matrices[steps[-1]]
        means = [f"{np.nanmean(m.values):.3f}" if np.isfinite(m.values).any() else "undefined" for m in (first, last)]
        measured = f"{len(steps)} steps, {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
        change = f"mean {' to '.join(means)}" if len(steps) > 1 else f"mean {means[0]}"
        return (
            f"<SimilarityHistory: {first.measure}, {first.shape[0]} x {first.shape[1]} layers at {measured}; {change}>"
        )

    def measure(self, model: nn.Module, step: int) -> SimilarityMatrix:
        """Compare ``model`` as it is now with the reference, and store the result under ``step``.

        Raises
        ------
        ValueError, TypeError, CaptureError, ModuleNotFoundError, RuntimeError, OSError
            As ``compare``.
        """
        check_network(model, "`model`")
        result = compare(self.reference, unwrap(model), self.data, **self.settings)
        if unwrap(model) is unwrap(self.reference):
            # `compare` takes a network with itself as meant. Here the reference would change with the model.
            notes = sharing_notes([("the reference", unwrap(model)), ("the model", unwrap(model))])
            result = with_notes(result, notes)
        self.matrices[step] = result
        return result

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


def _check_settings(reference: nn.Module, data: Iterable[Any], settings: Mapping[str, Any]) -> None:
    """Raise the error of ``compare`` now, and not after the first epoch, if an option is unknown or wrong."""
    options = set(inspect.signature(compare).parameters) - {"model_x", "model_y", "data"}
    if unknown := [name for name in settings if name not in options]:
        raise TypeError(f"`compare` has no option {unknown[0]!r}. {nearest_hint(unknown[0], options, kind='They')}")
    # The process group and the folder of a checkpoint may come later. What `exclude` names may be in the model only.
    known = {field.name for field in fields(Request)} - {"distributed", "checkpoint"}
    Request(data, **{name: value for name, value in settings.items() if name in known})
    select_layers(reference, layer_parts(settings.get("layers", "leaves")))


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
