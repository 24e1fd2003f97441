"""compare: models and data in, a SimilarityMatrix out, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from .capture.batches import Forward, batch_size, joined_batches, map_tensors
from .capture.layers import Layers, unwrap
from .capture.pooling import Pooling
from .capture.recorder import Keep, LayerRecorder, NotFiniteError
from .capture.state import borrowed, device_of
from .estimators.hsic import flat_centred
from .estimators.kernels import Kernel, Linear
from .estimators.minibatch import LayerGram, MinibatchCKA, layer_gram, unit_stack
from .similarity import SimilarityMatrix

_END = object()


def keep_gram(kernel: Kernel) -> Keep:
    """What a minibatch comparison does with features inside the hook: their Gram matrix, and nothing kept."""
    shifted: dict[str, bool] = {}

    def keep(name: str, features: torch.Tensor) -> LayerGram:
        result = layer_gram(features, kernel, shift=shifted.get(name, False))
        shifted[name] = result.shifted
        # A Gram matrix whose own sums passed as safe (factor 1.0 of the linear kernel) is finite.
        passed = isinstance(kernel, Linear) and isinstance(result.factor, float)
        if not passed and not bool(torch.isfinite(result.gram).all()) and not bool(torch.isfinite(features).all()):
            raise NotFiniteError
        return result

    return keep


def one_batch(data: Any) -> Iterable[Any]:
    """``data`` as an iterable of batches: a single tensor or mapping is one batch.

    Raises
    ------
    TypeError
        For a Dataset, whose items are single samples, and for what cannot be iterated.
    """
    if isinstance(data, torch.Tensor | Mapping):
        return [data]
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
        raise TypeError(
            "`data` is a Dataset, whose items are single samples. Wrap it: "
            "torch.utils.data.DataLoader(data, batch_size=64)."
        )
    if not isinstance(data, Iterable):
        raise TypeError(f"`data` must be an iterable of batches, such as a DataLoader, got {type(data).__name__}.")
    return data


def paired(data: Iterable[Any], data_y: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Batches of both loaders side by side.

    Raises
    ------
    ValueError
        If one ends before the other, or two batches differ in their number of samples.
    """
    for index, (x, y) in enumerate(zip_longest(data, data_y, fillvalue=_END)):
        if x is _END or y is _END:
            short, long = ("`data`", "`data_y`") if x is _END else ("`data_y`", "`data`")
            raise ValueError(f"{short} ended after {index} batches, {long} goes on. Both must hold the same samples.")
        if batch_size(x) != batch_size(y):
            raise ValueError(
                f"Batch {index} holds {batch_size(x)} samples in `data` and {batch_size(y)} in `data_y`. "
                "Both must hold the same samples in the same order."
            )
        yield x, y


def progress_bar(data: Iterable[Any], label: str, progress: bool) -> Iterable[Any]:
    """``data`` under a progress bar with rate and time left, or as it is."""
    if not progress:
        return data
    total = len(data) if isinstance(data, Sized) else None
    return tqdm(data, desc=label, total=total, unit="batch", dynamic_ncols=True)


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
        If a layer is unknown (the nearest names are given), ``data`` is empty or its batches are too small.
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
    statistics = MinibatchCKA(kernel=kernel, estimator=estimator)
    same = unwrap(model_x) is unwrap(model_y) and data_y is None and (layers_y is None or layers_y == layers)
    left = LayerRecorder(model_x, "model_x", layers, pooling, keep_gram(kernel), forward)
    right = (
        left
        if same
        else LayerRecorder(
            model_y, "model_y", layers if layers_y is None else layers_y, pooling, keep_gram(kernel), forward
        )
    )
    recorders = [left] if same else [left, right]
    notes: list[str] = []
    batches = one_batch(data) if data_y is None else paired(one_batch(data), one_batch(data_y))

    def rows(recorder: LayerRecorder, batch: Any, index: int) -> tuple[Any, Any, int]:
        batch = map_tensors(batch, lambda t: t.to(device_of(recorder.model), non_blocking=True))
        kept, samples = recorder.run(batch, index, batch_size(batch))
        grams, factors, _ = zip(*kept, strict=True)
        stack, divisors = unit_stack(grams, factors)
        home = device_of(left.model)
        return flat_centred(stack, estimator).to(home), divisors.to(home), samples

    interrupted = False
    with borrowed([r.model for r in recorders], device):
        try:
            with ExitStack() as hooks:
                for recorder in recorders:
                    hooks.enter_context(recorder.probe)
                for index, (batch, _) in enumerate(
                    joined_batches(progress_bar(batches, "compare", progress), statistics.minimum, notes)
                ):
                    batch_x, batch_y = (batch, batch) if data_y is None else batch
                    rows_x, scale_x, samples = rows(left, batch_x, index)
                    rows_y, scale_y, samples_y = (rows_x, scale_x, samples) if same else rows(right, batch_y, index)
                    if samples != samples_y:
                        raise ValueError(
                            f"Batch {index} gives {samples} rows of features in model_x and {samples_y} in model_y. "
                            "Both must see the same samples; with positions as samples, the same positions."
                        )
                    if samples < statistics.minimum:
                        notes.append(
                            f"batch {index} of {samples} samples was left out: {statistics.minimum} are needed"
                        )
                        continue
                    statistics.update_rows(rows_x, scale_x, rows_y, scale_y, samples)
        except KeyboardInterrupt:
            if not statistics.batches:
                raise
            interrupted = True
            notes.append(f"stopped by the user after {statistics.batches} batches: a partial result")
    if not statistics.batches:
        raise ValueError(_no_batches(notes, statistics.minimum))
    return _result(statistics, left, right, notes, pooling, interrupted)


def _no_batches(notes: Sequence[str], minimum: int) -> str:
    if notes:
        return f"No batch could be used: {notes[0]}. Use a batch size of at least {minimum}."
    return "`data` yielded no batch. A generator can be used only once: pass a list or a DataLoader."


def _result(
    statistics: MinibatchCKA,
    left: LayerRecorder,
    right: LayerRecorder,
    notes: list[str],
    pooling: Pooling,
    partial: bool,
) -> SimilarityMatrix:
    from scipy import stats

    def to_numpy(values: Any) -> Any:
        return values.cpu().numpy()

    for recorder in [left] if right is left else [left, right]:
        notes += [f"{recorder.name}: {name!r} was left out: {why}" for name, why in recorder.left_out.items()]
    for recorder, key in [(left, "self_x")] if right is left else [(left, "self_x"), (right, "self_y")]:
        dead = to_numpy(statistics.sums[key]).ravel() <= 0
        notes += [
            f"{recorder.name}: {name!r} is constant over the samples of every batch, so its similarity is undefined"
            for name, is_dead in zip(recorder.names, dead, strict=True)
            if is_dead
        ]
    unbiased = statistics.estimator == "unbiased"
    return SimilarityMatrix(
        to_numpy(statistics.compute()),
        left.names,
        right.names,
        standard_error=to_numpy(statistics.standard_error()) if statistics.batches > 1 else None,
        p_value=stats.norm.sf(to_numpy(statistics.z_score())) if unbiased else None,
        chance=to_numpy(statistics.chance_level()),
        notes=notes,
        measure="cka",
        meta={
            "kernel": repr(statistics.kernel),
            "estimator": statistics.estimator,
            "scope": "minibatch",
            "samples": statistics.samples,
            "batches": statistics.batches,
            "degrees_of_freedom": statistics.batches - 1,
            "pooling": pooling if isinstance(pooling, str) else getattr(pooling, "__name__", repr(pooling)),
            "model_x": type(left.model).__name__,
            "model_y": type(right.model).__name__,
            "partial": partial,
        },
    )
