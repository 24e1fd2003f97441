"""Make the signature of one model on a data set: its centred Gram matrices, which are compared later without the model.

Two signatures of the same samples, even from different machines, give the same similarities as ``compare`` on both
models, up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..capture.batches import Forward
from ..capture.layers import Layers
from ..capture.networks import check_network
from ..capture.pooling import Pooling
from ..capture.sample_order import SampleOrder
from ..estimators.count_sketch import RowSketch
from ..estimators.kernels import Kernel, kernel_from_name
from ..estimators.validation import check_estimator
from .grams.keeper import GramKeeper
from .minibatch import centred_rows
from .notes import drift_notes, rows_are_samples
from .places import places
from .request import ComparedModel, Request
from .signature_files import Signature, SketchedSignature
from .signature_pairs import compare_signatures
from .signature_vectors import Sketch, as_sketch, sketch_of, weighted

__all__ = ["Signature", "compare_signatures", "signature"]


def signature(
    model: nn.Module,
    data: Iterable[Any],
    *,
    name: str | None = None,
    layers: Layers = "leaves",
    exclude: Layers | None = None,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    sample_axis: int = 0,
    device: torch.device | str | None = None,
    channels_last: bool = False,
    progress: bool = True,
    form: str | Sketch = "exact",
) -> Signature | SketchedSignature:
    """The signature of ``model`` on ``data``, for ``compare_signatures``.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    data, layers, exclude, kernel, estimator, pooling, forward, sample_axis, device, channels_last, progress
        As ``compare``. Two signatures can be compared if ``data`` yielded the same batches for both.
    name : str, optional
        Name of the model in results; its class name when left out.
    form : "exact", "half", "sketch" or Sketch
        "exact" keeps the Gram matrices in float32, "half" in float16 (an error of CKA of some 1e-5:
        ``Signature.half``). "sketch" keeps 4,096 numbers for each layer, whatever the number of samples: a standard
        error of CKA of (1 - CKA^2) / sqrt(4096), at most 0.016, and 8 KB a layer. ``Sketch(size, seed)`` is a sketch of
        another size. No more than one minibatch of Gram matrices is then in memory.

    Returns
    -------
    Signature or SketchedSignature
        A Signature holds n (n + 1) / 2 numbers for each layer and minibatch of n samples.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As ``compare``.
    KeyboardInterrupt
        If the user stops the pass: a signature of a part of the data is not made.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> signature(net, torch.ones(4, 8), progress=False).layers
    ('0', '1')
    """
    check_network(model, "`model`")
    if not isinstance(name, str | None):
        raise TypeError(f"`name` must be a text, got {name!r}.")
    request = Request(
        data,
        kernel=kernel,
        estimator=estimator,
        pooling=pooling,
        forward=forward,
        sample_axis=sample_axis,
        device=device,
        channels_last=channels_last,
        progress=progress,
    )
    sketch = as_sketch(form)
    _check_readable(request.kernel)
    keeper = GramKeeper(request.kernel, drift=rows_are_samples(request.pooling))
    recorder = request.recorder(ComparedModel(model, "model", layers, exclude), keeper)
    order = SampleOrder()
    run = request.make_pass([recorder], check_estimator(estimator), order=order, label="signature")
    rows_sketch = None if sketch is None else RowSketch(sketch.size, sketch.seed)
    grams: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    sizes: list[int] = []

    def consume(index: int, kept: list[list[Any]], samples: int) -> None:
        rows, scale = centred_rows(kept[0], estimator, torch.device("cpu"), keeper, recorder.names, index)
        sizes.append(samples)
        triangles = rows.float().numpy().reshape(-1, samples, samples)[:, *np.triu_indices(samples)]
        if rows_sketch is not None:
            rows_sketch.add(weighted(triangles, scale.numpy(), samples, estimator))
            return
        grams.append(triangles)
        scales.append(scale.numpy())

    run.run(data, consume)
    if run.interrupted:
        raise KeyboardInterrupt("The pass was interrupted, so there is no signature of the whole data set.")
    run.require_batches()
    layers_left = places([recorder])
    name = name or type(recorder.model).__name__
    header: dict[str, Any] = {
        "name": name,
        "layers": tuple(recorder.compared),
        "order": order.hexdigest(),
        "kernel": repr(request.kernel),
        "estimator": estimator,
        "pooling": request.pooling_name,
        "notes": (
            *run.notes,
            *_keeper_notes(keeper, name, recorder.names, recorder.compared),
            *recorder.notes(name=False),
        ),
        "samples": tuple(sizes),
        "undefined": keeper.findings.reasons(),
    }
    if rows_sketch is not None:
        return sketch_of(rows_sketch, header, layers_left)
    exact = Signature(
        **header, grams=tuple(gram[layers_left] for gram in grams), scales=tuple(scale[layers_left] for scale in scales)
    )
    return exact.half() if form == "half" else exact


def _keeper_notes(keeper: GramKeeper, name: str, layers: Sequence[str], compared: Sequence[str]) -> list[str]:
    """Notes of the keeper, without the name of the model before them."""
    notes = [*keeper.finish(name, layers), *keeper.findings.notes(name, layers, compared)]
    drift = None if keeper.batch_means is None else keeper.batch_means.drift()
    return [*(note.removeprefix(f"{name}: ") for note in notes), *drift_notes([(name, drift)])]


def _check_readable(kernel: Kernel) -> None:
    """Raise ValueError unless the kernel can be read back from its ``repr``, which is what a signature holds of it."""
    try:
        kernel_from_name(repr(kernel))
    except ValueError as error:
        raise ValueError(
            f"A signature needs a kernel of cka_probe, because it holds only its name, but got {kernel!r}. `compare` "
            "takes any function as its kernel."
        ) from error
