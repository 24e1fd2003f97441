"""compare: models and data in, a SimilarityMatrix out, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture.batches import Forward
from ..capture.layers import Layers, unwrap
from ..capture.pooling import Pooling
from ..capture.recorder import Keep, LayerRecorder
from ..estimators.kernels import Kernel
from ..similarity.matrix import SimilarityMatrix
from .dataset import keep_features, run_dataset
from .grams.keeper import GramKeeper
from .minibatch import run_minibatch
from .request import Request, make_request


def compare(
    model_x: nn.Module,
    model_y: nn.Module,
    data: Iterable[Any],
    *,
    layers: Layers = "leaves",
    layers_y: Layers | None = None,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    scope: str | None = None,
    measure: str = "cka",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    data_y: Iterable[Any] | None = None,
    names: tuple[str, str] | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    backend: str = "torch",
    tf32: bool = False,
    overlap: bool = False,
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
        The kind of HSIC that CKA is a ratio of.
    scope : "minibatch" or "dataset", optional
        "minibatch", the default for CKA: the ratio of mean minibatch HSIC; memory grows with the number of layers only.
        "dataset": exact over all samples, by moments, blocks of Gram matrices or a sketch, whichever is cheapest; the
        result's notes name it.
    measure : str
        "cka", or one of ``cka_probe.estimators.MEASURES`` ("procrustes", "cca", "rsa_spearman", ...) on the features of
        all samples.
    pooling : str or callable
        How an activation becomes features (n, d): "auto", "flatten", "mean", "spatial", "all", "cls", "last", or a
        function.
    forward : callable, optional
        ``forward(model, batch)`` runs a model on a batch that the default does not understand.
    data_y : iterable of batches, optional
        Batches for the second model where its input differs (another tokenizer or image size); the same samples.
    names : (str, str), optional
        What the result, its pictures and messages call the models; their classes when left out.
    device : device, optional
        Where both models run; each stays where it is when left out.
    autocast : torch.dtype, optional
        Run the forwards under autocast in this precision; the statistics stay in float32 and float64.
    checkpoint : path, optional
        Save the state here every 20 batches; a later call with the same arguments goes on from it with the identical
        answer. The file is removed at the end. For the minibatch scope.
    distributed : bool
        Under torch.distributed: ``data`` is this process's shard (see ``shard``), and every process returns the result
        of all. For the minibatch scope.
    backend : "torch" or "cupy"
        What makes and centres Gram matrices on an NVIDIA GPU; CuPy takes half of the multiplications. For the minibatch
        scope.
    tf32 : bool
        Let an NVIDIA GPU multiply float32 features in TF32: faster, with errors of about 1e-3. For the minibatch scope.
    overlap : bool
        Let an NVIDIA GPU make Gram matrices on a stream of its own while the forward goes on. The first minibatch in
        which layers turn out to be changed in place after their hook runs twice; changes that torch does not count
        (``x.data``, kernels that write through pointers) would go unseen. For the minibatch scope.
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
    request = make_request(
        data,
        data_y=data_y,
        kernel=kernel,
        estimator=estimator,
        scope=scope,
        measure=measure,
        square=False,
        device=device,
        autocast=autocast,
        checkpoint=checkpoint,
        distributed=distributed,
        backend=backend,
        tf32=tf32,
        overlap=overlap,
        progress=progress,
    )
    if names is not None and (isinstance(names, str) or len(names) != 2):
        raise ValueError(f"`names` must be two, for model_x and model_y, got {names!r}.")
    layers_y = layers if layers_y is None else layers_y
    same = unwrap(model_x) is unwrap(model_y) and data_y is None and layers_y == layers
    name_x, name_y = names or (_kind(model_x), _kind(model_y))
    recorders = [LayerRecorder(model_x, names[0] if names else "model_x", layers, pooling, _keep(request), forward)]
    if not same:
        recorders.append(
            LayerRecorder(model_y, names[1] if names else "model_y", layers_y, pooling, _keep(request), forward)
        )
    return _run(recorders, request, {"pooling": _name(pooling), "model_x": name_x, "model_y": name_y})


def compare_many(
    models: Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    layers: Layers | Mapping[str, Layers] = "leaves",
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    scope: str | None = None,
    measure: str = "cka",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    backend: str = "torch",
    tf32: bool = False,
    overlap: bool = False,
    progress: bool = True,
) -> SimilarityMatrix:
    """CKA of every pair of layers of every pair of models, one forward of each model for each batch.

    For several checkpoints of one run, or a zoo of networks.

    Parameters
    ----------
    models : mapping of str to torch.nn.Module
        At least one model by name.
    data, kernel, estimator, scope, measure, pooling, forward, device, autocast, checkpoint, distributed, backend, tf32,
    overlap, progress
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
    request = make_request(
        data,
        kernel=kernel,
        estimator=estimator,
        scope=scope,
        measure=measure,
        square=True,
        device=device,
        autocast=autocast,
        checkpoint=checkpoint,
        distributed=distributed,
        backend=backend,
        tf32=tf32,
        overlap=overlap,
        progress=progress,
    )
    chosen = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(models, layers)
    if missing := [name for name in models if name not in chosen]:
        raise ValueError(f"`layers` names no layers for {', '.join(map(repr, missing))}.")
    recorders = [
        LayerRecorder(model, name, chosen[name], pooling, _keep(request), forward) for name, model in models.items()
    ]
    for recorder, name in zip(recorders, models, strict=True):
        recorder.name = name
    meta = {"pooling": _name(pooling), "models": {name: _kind(model) for name, model in models.items()}}
    return _run(recorders, request, meta, models=True)


def _run(
    recorders: list[LayerRecorder], request: Request, meta: dict[str, Any], *, models: bool = False
) -> SimilarityMatrix:
    request.check_devices([recorder.model for recorder in recorders])
    if request.scope == "minibatch":
        return run_minibatch(recorders, request, meta, models=models)
    return run_dataset(recorders, request, meta, models=models)


def _keep(request: Request) -> Keep:
    if request.scope != "minibatch":
        return keep_features
    return GramKeeper(request.kernel, backend=request.backend, tf32=request.tf32, overlap=request.overlap)


def _name(pooling: Pooling) -> str:
    return pooling if isinstance(pooling, str) else getattr(pooling, "__name__", repr(pooling))


def _kind(model: nn.Module) -> str:
    return type(unwrap(model)).__name__
