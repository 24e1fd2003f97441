"""compare and compare_many: the layers of models against each other, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture.batches import Forward
from ..capture.layers import Layers, layer_parts, select_layers, unwrap
from ..capture.networks import check_network
from ..capture.pooling import Pooling
from ..estimators.kernels import Kernel
from ..similarity.matrix import SimilarityMatrix
from .checks import check_measure_options
from .dataset import run_dataset
from .layer_choice import excluded, layers_by_model
from .minibatch import run_minibatch
from .request import ComparedModel, Request
from .sharing import sharing_notes, with_notes
from .together import Together

__all__ = ["compare", "compare_many"]


def compare(
    model_x: nn.Module,
    model_y: nn.Module,
    data: Iterable[Any],
    *,
    layers: Layers = "leaves",
    layers_y: Layers | None = None,
    exclude: Layers | None = None,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    scope: str | None = None,
    measure: str = "cka",
    permutations: int | None = None,
    outputs: bool = False,
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    sample_axis: int = 0,
    data_y: Iterable[Any] | None = None,
    names: tuple[str, str] | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    backend: str = "torch",
    tf32: bool = False,
    overlap: bool = False,
    memory: int | str | None = None,
    route: str | None = None,
    progress: bool = True,
    **options: Any,
) -> SimilarityMatrix:
    """CKA, or another measure, of every layer of one network with every layer of another.

    Both networks run in eval mode without gradients, in one pass over the data. Weights, buffers, modes, hooks, devices
    and random number generators are as before afterwards, also after an error. Other threads that compare one of the
    networks wait meanwhile.

    Parameters
    ----------
    model_x, model_y : torch.nn.Module
        Rows and columns of the result. If both are the same model, it runs once.
    data : iterable of batches
        A batch is a tensor or numpy array, an (input, target) tuple, or a dict or BatchEncoding, whose items are passed
        as keywords and whose attention mask is used; with ``forward`` it may be anything. Each model gets a copy of its
        own. A single tensor, dict or (input, target) is cut into minibatches if it has more than 512 samples.
    layers, layers_y : str, type, callable, mapping or sequence
        "leaves" (every module that is a layer of its own), "blocks", module paths, globs (``*`` stays between two dots,
        ``**`` crosses them), "re:..." patterns, classes or a predicate; the names of another result, such as
        ``result.rows``. A mapping {layer: name} renames layers. ``layers_y`` selects the layers of ``model_y``;
        ``layers`` selects them when it is left out. A module that runs twice is two layers, "name" and "name#2".
    exclude : same forms as `layers`, optional
        Layers of both models to leave out.
    kernel : Kernel, optional
        Linear when left out.
    estimator : "unbiased" or "biased"
        Estimator of HSIC in the numerator and denominator of CKA.
    scope : "minibatch" or "dataset", optional
        "minibatch", the default for CKA: the ratio of mean minibatch HSIC. Memory grows with the number of layers, not
        with the data. "dataset": over all samples at once, within ``memory``, exactly unless no exact route fits. A
        note of the result names the route.
    measure : str
        "cka", or one of ``cka_probe.estimators.MEASURES`` ("procrustes", "cca", "rsa", ...) on the features of all
        samples. "mmd" also has the minibatch scope: ``extra`` of the result then holds its bounds, and CKA of the same
        pass.
    permutations : int, optional
        Count the p-values from this many random permutations of the samples of the columns (999 allow 0.001): for CKA
        within each minibatch, instead of from the exact moments; for other measures over all samples, each permutation
        at the cost of the measure. ``extra`` of the result then holds "corrected_p_value" (of the largest of all
        pairs), "z_score" and "score" (see ``cka_probe.estimators.Calibration``).
    outputs : bool
        Also compare how the networks answer: ``meta["answers"]`` holds disagreement and Jensen-Shannon divergence of
        their class scores and, if the batches hold the classes, accuracies and error consistency
        (``cka_probe.answers``).
    pooling : str or callable
        How an activation becomes features (n, d): "auto", "flatten", "mean", "spatial", "all", "cls", "last", or a
        function.
    forward : callable, optional
        ``forward(model, batch)`` runs a model on a batch that the default does not understand.
    sample_axis : int
        Axis of the inputs that holds the samples: 1 if time comes first, (t, n, d). The axis of each layer's samples is
        then found by their number.
    data_y : iterable of batches, optional
        Batches for ``model_y`` if its input differs, for example in tokenizer or image size. They must hold the same
        samples in the same order.
    names : (str, str), optional
        Names of the models in the result, its plots and messages; their classes when left out.
    device : device, optional
        Where both models run; each stays where it is when left out.
    autocast : torch.dtype, optional
        Run the forward passes under autocast in this precision. The statistics stay in float32 and float64.
    channels_last : bool
        Let images and filters have their channels last in memory while the models run: faster for many networks of
        convolutions, on a CPU and on a GPU. The models get their own memory back; meanwhile their filters are in memory
        twice. Values change by the rounding of the forward pass only.
    checkpoint : path, optional
        Save the state to this file every 20 batches and after Ctrl-C. A later call with the same arguments resumes from
        the file and gives the identical result; one with other models, options or data is refused. The file is removed
        at the end. With ``distributed`` each process has a file of its own: "run.rank0.npz" for "run.npz". In the
        dataset scope, a way that keeps features writes all of them to a second file ("run.npz.features"); if the folder
        has no room for it, a note says so, and nothing is saved. Of several passes, each is saved when it is over.
    distributed : bool
        Under torch.distributed: ``data`` is the shard of this process (see ``Shard``), and every process returns the
        result for all shards. Models and options must be equal in all processes; if one process fails, all raise. In
        the dataset scope without ``checkpoint``; blocks and other measures than CKA take the features of all samples
        in each process.
    backend : "torch" or "cupy"
        Library that computes Gram matrices on an NVIDIA GPU. Torch is faster (benchmarks/results/gpu.md). For the
        minibatch scope.
    tf32 : bool
        Multiply float32 features in TF32 on an NVIDIA GPU: faster, with errors of about 1e-3. For the minibatch scope.
    overlap : bool
        Compute Gram matrices on a second stream of an NVIDIA GPU while the forward pass goes on. If later layers change
        an output in place, the first such minibatch runs twice. Changes that torch does not count (``x.data``, kernels
        that write through pointers) are not noticed. For the minibatch scope.
    memory : int or str, optional
        For the dataset scope: bytes ("4GiB") that features, statistics and forward passes may take, in addition to what
        is in use; a third of the free memory when left out. What does not fit in one pass takes several passes over the
        data, some layers each, or a temporary file. A comparison that fits in no way is refused before it runs.
    route : str, optional
        For the dataset scope: "moments", "grams", "disk", "blocks" (all exact) or "sketch" (an estimate). When left
        out, the fastest exact route that fits; the sketch only if none does. ``cka-probe plan`` prints all.
    progress : bool
        Show a progress bar.
    **options
        Options of the measure: ``measure="mutual_knn", k=5``. They are those of its function in
        ``cka_probe.estimators``, and are kept in ``meta["options"]`` of the result. ``kernel`` reaches a measure that
        has a kernel.

    Returns
    -------
    SimilarityMatrix
        Values in float64; standard errors, p-values under the permutation null and chance levels if scope and measure
        have them. Notes name layers that are constant or were left out, weights that the models share, and state that a
        forward keeps. After Ctrl-C, which waits for the end of the batch in work, the result covers the batches until
        then.

    Raises
    ------
    ValueError
        If a layer or option is unknown, two options contradict each other, ``data`` is empty, its batches are too
        small, a checkpoint belongs to another comparison, or the processes of ``distributed`` compare different things.
    TypeError
        If a model is not a network, ``data`` is not an iterable of batches, an option is of the wrong kind, or a
        keyword is neither a parameter nor an option of the measure.
    CaptureError
        If a layer gives NaN or infinity, or cannot be compared; the message names model, layer and batch.
    ModuleNotFoundError, RuntimeError
        If ``backend="cupy"`` and CuPy or the GPU is missing. RuntimeError also if ``distributed`` is set without a
        process group, if another process fails, or if two threads inside comparisons wait for each other's networks.
    OSError
        If the checkpoint cannot be written.

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
    with Together(bool(distributed)) as together:
        check_network(model_x, "`model_x`")
        check_network(model_y, "`model_y`")
        check_measure_options(compare, measure, options)
        request = Request(
            data,
            data_y=data_y,
            kernel=kernel,
            estimator=estimator,
            scope=scope,
            measure=measure,
            permutations=permutations,
            outputs=outputs,
            pooling=pooling,
            forward=forward,
            sample_axis=sample_axis,
            device=device,
            autocast=autocast,
            channels_last=channels_last,
            checkpoint=checkpoint,
            distributed=distributed,
            backend=backend,
            tf32=tf32,
            overlap=overlap,
            memory=memory,
            route=route,
            progress=progress,
            options=options,
        )
        if names is not None and (
            isinstance(names, str) or len(names) != 2 or not all(isinstance(n, str) for n in names)
        ):
            raise ValueError(f"`names` must be two texts, for model_x and model_y, got {names!r}.")
        chosen = layer_parts(layers)
        chosen_y = chosen if layers_y is None else layer_parts(layers_y)
        exclude_x, exclude_y = excluded([model_x, model_y], [chosen, chosen_y], exclude)
        models = [ComparedModel(model_x, names[0] if names else "model_x", chosen, exclude_x)]
        selected, selected_y = (
            select_layers(*m) for m in ((model_x, chosen, exclude_x), (model_y, chosen_y, exclude_y))
        )
        if unwrap(model_x) is not unwrap(model_y) or data_y is not None or selected != selected_y:
            models.append(ComparedModel(model_y, names[1] if names else "model_y", chosen_y, exclude_y))
        if len(models) == 2 and names and names[0] == names[1]:  # messages must tell them apart
            models = [
                replace(m, name=f"{m.name} ({side})") for m, side in zip(models, ("rows", "columns"), strict=True)
            ]
        name_x, name_y = names or (_class_name(model_x), _class_name(model_y))
        return _run(models, request, {"pooling": request.pooling_name, "model_x": name_x, "model_y": name_y}, together)


def compare_many(
    models: Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    layers: Layers | Mapping[str, Layers] = "leaves",
    exclude: Layers | None = None,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    scope: str | None = None,
    measure: str = "cka",
    permutations: int | None = None,
    outputs: bool = False,
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    sample_axis: int = 0,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
    backend: str = "torch",
    tf32: bool = False,
    overlap: bool = False,
    memory: int | str | None = None,
    route: str | None = None,
    progress: bool = True,
    **options: Any,
) -> SimilarityMatrix:
    """CKA, or another measure, of every pair of layers of several models, with one forward pass of each per batch.

    Parameters
    ----------
    models : mapping of str to torch.nn.Module
        At least one model by name, for example the checkpoints of one run. Names that are numbers become texts.
    data, exclude, kernel, estimator, scope, measure, permutations, outputs, pooling, forward, sample_axis, device,
    autocast, channels_last, checkpoint, distributed, backend, tf32, overlap, memory, route, progress, **options
        As ``compare``.
    layers : as ``compare``, or a mapping of model name to that
        Layers of every model, or those of each model by its name; also pairs (model name, layer), as in the index of
        ``to_frame()``. A layer that is written out must exist in one of the models.

    Returns
    -------
    SimilarityMatrix
        Square, with the model of each row and column in ``row_models`` and ``column_models``; ``to_frame()`` has a
        (model, layer) MultiIndex.

    Raises
    ------
    ValueError, TypeError, CaptureError, ModuleNotFoundError, RuntimeError, OSError
        As ``compare``. Also ValueError if ``models`` is empty or a mapping of layers lacks a model, and TypeError if
        ``models`` is not a mapping.

    Examples
    --------
    >>> nets = {name: nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for name in ("a", "b")}
    >>> compare_many(nets, torch.randn(32, 8), progress=False).to_frame().shape
    (4, 4)
    """
    with Together(bool(distributed)) as together:
        if not isinstance(models, Mapping):
            raise TypeError(f"`models` must be a mapping of names to models, got {type(models).__name__}.")
        if not models:
            raise ValueError("`models` is empty: give at least one model by name.")
        for name, model in models.items():
            check_network(model, f"`models[{name!r}]`")
        if isinstance(layers, Mapping):
            layers = {str(key) if key in models else key: chosen for key, chosen in layers.items()}
        check_measure_options(compare_many, measure, options)
        models = _by_text(models)
        request = Request(
            data,
            kernel=kernel,
            estimator=estimator,
            scope=scope,
            measure=measure,
            permutations=permutations,
            outputs=outputs,
            pooling=pooling,
            forward=forward,
            sample_axis=sample_axis,
            square=True,
            device=device,
            autocast=autocast,
            channels_last=channels_last,
            checkpoint=checkpoint,
            distributed=distributed,
            backend=backend,
            tf32=tf32,
            overlap=overlap,
            memory=memory,
            route=route,
            progress=progress,
            options=options,
        )
        chosen = layers_by_model(models, layers)
        without = excluded(list(models.values()), [chosen[name] for name in models], exclude)
        compared = [
            ComparedModel(model, name, chosen[name], own)
            for (name, model), own in zip(models.items(), without, strict=True)
        ]
        classes = {name: _class_name(model) for name, model in models.items()}
        return _run(compared, request, {"pooling": request.pooling_name, "models": classes}, together)


def _run(models: list[ComparedModel], request: Request, meta: dict[str, Any], together: Together) -> SimilarityMatrix:
    networks = [(model.name, unwrap(model.model)) for model in models]
    if not request.square and len({id(network) for _, network in networks}) == 1:
        networks = []  # `compare` of a network with itself is meant
    notes = sharing_notes(networks)
    if request.scope == "minibatch":
        return with_notes(run_minibatch(models, request, meta, together), notes)
    return with_notes(run_dataset(models, request, meta, together), notes)


def _by_text(models: Mapping[Any, nn.Module]) -> dict[str, nn.Module]:
    """The models by the text of their names: the checkpoints of a run may be named by their steps."""
    named = {str(name): model for name, model in models.items()}
    if len(named) < len(models):
        raise ValueError(f"Two names in `models` are the same as text: {', '.join(map(repr, models))}.")
    return named


def _class_name(model: nn.Module) -> str:
    return type(unwrap(model)).__name__
