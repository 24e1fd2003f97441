"""compare: models and data in, a SimilarityMatrix out, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .capture.batches import Forward
from .capture.layers import Layers, unwrap
from .capture.pooling import Pooling
from .capture.recorder import LayerRecorder
from .estimators.kernels import Kernel, Linear
from .similarity import SimilarityMatrix
from .statistics import MinibatchPass, keep_gram
from .streaming import Pass, SampleOrder

CHECKPOINT_EVERY = 20
"""Batches between two saves of a comparison with ``checkpoint=``."""


def compare(
    model_x: nn.Module,
    model_y: nn.Module,
    data: Iterable[Any],
    *,
    layers: Layers = "leaves",
    layers_y: Layers | None = None,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    data_y: Iterable[Any] | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> SimilarityMatrix:
    """CKA of every layer of one network with every layer of another, in one pass over the data.

    Parameters
    ----------
    model_x, model_y : torch.nn.Module
        Rows and columns. The same model twice runs once. Run in eval mode without gradients; modes, hooks, devices and
        random number generators are as before afterwards, whatever happens.
    data : iterable of batches
        Tensors, (input, target) tuples, dicts or BatchEncodings (passed as keywords, the attention mask used), or
        anything with ``forward``. A single tensor or dict is one batch.
    layers, layers_y : str, type, callable or sequence
        "leaves", "blocks", module paths, globs, "re:..." patterns, classes or a predicate; ``layers_y`` where the
        second model differs. A module that runs twice is two layers, "name" and "name#2".
    kernel : Kernel, optional
        Linear when left out.
    estimator : "unbiased" or "biased"
        Minibatch CKA is the ratio of mean minibatch HSIC of this kind.
    pooling : str or callable
        How an activation becomes features (n, d): "auto", "flatten", "mean", "spatial", "all", "cls", "last", or a
        function.
    forward : callable, optional
        ``forward(model, batch)`` runs a model on a batch that the default does not understand.
    data_y : iterable of batches, optional
        Batches for the second model where its input differs (another tokenizer or image size); the same samples.
    device : device, optional
        Where both models run; each stays where it is when left out.
    autocast : torch.dtype, optional
        Run the forwards under autocast in this precision; the statistics stay in float32 and float64.
    checkpoint : path, optional
        Save the state here every 20 batches; a later call with the same arguments goes on from it with the identical
        answer. The file is removed at the end.
    distributed : bool
        Under torch.distributed: ``data`` is this process's shard (see ``shard``), and every process returns the result
        of all.
    progress : bool
        Show a progress bar.

    Returns
    -------
    SimilarityMatrix
        Values in float64, with standard errors over the minibatches, p-values against the permutation null, chance
        levels, and notes on layers that are constant or were left out. After Ctrl-C, what the batches until then gave.

    Raises
    ------
    ValueError
        If a layer is unknown (the nearest names are given), ``data`` is empty or its batches are too small, or a
        checkpoint is of another comparison.
    TypeError
        If ``data`` is no iterable of batches.
    CaptureError
        If a layer gives NaN or infinity, or cannot be compared; the message names model, layer and batch.

    References
    ----------
    Nguyen, Raghu, Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, section 2.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> result = compare(net, net, torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), progress=False)
    >>> result.rows
    ('0', '1', '2')
    """
    kernel = kernel or Linear()
    layers_y = layers if layers_y is None else layers_y
    same = unwrap(model_x) is unwrap(model_y) and data_y is None and layers_y == layers
    recorders = [LayerRecorder(model_x, "model_x", layers, pooling, keep_gram(kernel), forward)]
    if not same:
        recorders.append(LayerRecorder(model_y, "model_y", layers_y, pooling, keep_gram(kernel), forward))
    gathered, run = _minibatch(
        recorders, kernel, estimator, data, data_y, device, autocast, checkpoint, distributed, progress, square=False
    )
    meta = {"pooling": _name(pooling), "model_x": _kind(model_x), "model_y": _kind(model_y), "partial": run.interrupted}
    return gathered.result(run.notes, meta)


def compare_many(
    models: Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    layers: Layers | Mapping[str, Layers] = "leaves",
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> SimilarityMatrix:
    """CKA of every pair of layers of every pair of models, one forward of each model for each batch.

    For several checkpoints of one run, or a zoo of networks.

    Parameters
    ----------
    models : mapping of str to torch.nn.Module
        At least one model by name.
    data, kernel, estimator, pooling, forward, device, autocast, checkpoint, distributed, progress
        As ``compare``.
    layers : as ``compare``, or a mapping of model name to that
        Layers of every model, or of each.

    Returns
    -------
    SimilarityMatrix
        Square, with the model of each row and column in ``row_models`` and ``column_models``; ``to_frame()`` has a
        (model, layer) MultiIndex.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As ``compare``; and for a mapping of layers that lacks a model.

    Examples
    --------
    >>> nets = {name: nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for name in ("a", "b")}
    >>> compare_many(nets, torch.randn(32, 8), progress=False).to_frame().shape
    (4, 4)
    """
    if not isinstance(models, Mapping):
        raise TypeError(f"`models` must be a mapping of names to models, got {type(models).__name__}.")
    if not models:
        raise ValueError("`models` is empty: give at least one model by name.")
    kernel = kernel or Linear()
    chosen = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(models, layers)
    if missing := [name for name in models if name not in chosen]:
        raise ValueError(f"`layers` names no layers for {', '.join(map(repr, missing))}.")
    recorders = [
        LayerRecorder(model, name, chosen[name], pooling, keep_gram(kernel), forward) for name, model in models.items()
    ]
    for recorder, name in zip(recorders, models, strict=True):
        recorder.name = name
    gathered, run = _minibatch(
        recorders, kernel, estimator, data, None, device, autocast, checkpoint, distributed, progress, square=True
    )
    meta = {
        "pooling": _name(pooling),
        "models": {name: _kind(model) for name, model in models.items()},
        "partial": run.interrupted,
    }
    return gathered.result(run.notes, meta, models=True)


def _minibatch(
    recorders: list[LayerRecorder],
    kernel: Kernel,
    estimator: str,
    data: Iterable[Any],
    data_y: Iterable[Any] | None,
    device: torch.device | str | None,
    autocast: torch.dtype | None,
    checkpoint: str | Path | None,
    distributed: bool,
    progress: bool,
    *,
    square: bool,
) -> tuple[MinibatchPass, Pass]:
    """Run one pass with minibatch statistics, from a checkpoint where there is one."""
    gathered = MinibatchPass(recorders, kernel, estimator, square=square)
    order = SampleOrder() if checkpoint is not None else None
    run = Pass(
        recorders,
        gathered.statistics.minimum,
        device=device,
        autocast=autocast,
        progress=progress,
        order=order,
    )
    path = None if checkpoint is None else Path(checkpoint)
    skip, seen_before = gathered.load(path) if path is not None and path.exists() else (0, "")

    def consume(index: int, kept: list[list[Any]], samples: int) -> None:
        gathered.consume(index, kept, samples)
        if path is not None and order is not None and (index + 1) % CHECKPOINT_EVERY == 0:
            gathered.save(path, order.hexdigest(), index + 1)

    def same_samples(digest: str) -> None:
        if digest != seen_before:
            raise ValueError(
                f"{path} was made from other samples, or in another order. Turn shuffling off, or delete the file."
            )

    run.run(data, consume, data_y=data_y, skip=skip, skipped=same_samples)
    if path is not None and run.interrupted:
        gathered.save(path, run.digest, run.done)
    if distributed:
        gathered.all_reduce()
    else:
        run.require_batches()
    if path is not None and not run.interrupted:
        path.unlink(missing_ok=True)
    return gathered, run


def _name(pooling: Pooling) -> str:
    return pooling if isinstance(pooling, str) else getattr(pooling, "__name__", repr(pooling))


def _kind(model: nn.Module) -> str:
    return type(unwrap(model)).__name__
