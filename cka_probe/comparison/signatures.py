"""Signatures: what one model leaves on a data set, saved once and compared later without the model.

A signature holds the centred Gram matrices of every layer and minibatch. Two signatures of the same samples, made on
different machines, give the same similarities as ``compare`` on both models.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ..capture.batches import Forward
from ..capture.layers import Layers
from ..capture.pooling import Pooling
from ..capture.recorder import LayerRecorder
from ..capture.streaming import Pass, SampleOrder
from ..estimators.kernels import Kernel, Linear, kernel_from_name
from ..estimators.minibatch import MinibatchCKA
from ..similarity.matrix import SimilarityMatrix
from .grams.keeper import GramKeeper
from .minibatch import centred_rows, minibatch_result

FORMAT = "cka_probe.signature"


@dataclass(frozen=True)
class Signature:
    """What one model leaves on a data set.

    Attributes
    ----------
    name : str
        What results call the model.
    layers : tuple of str
        Layer names, in the order of execution.
    order : str
        Digest of the samples and their order; only signatures with equal digests can be compared.
    kernel, estimator, pooling : str
        How it was made.
    notes : tuple of str
        Layers and batches that were left out.
    samples : tuple of int
        Samples of each minibatch.
    grams : tuple of arrays (layers, n (n + 1) / 2) of float32
        For each minibatch the upper triangles of the centred Gram matrices, diagonal first to last row.
    scales : tuple of arrays (layers,) of float64
        What they were divided by.
    """

    name: str
    layers: tuple[str, ...]
    order: str
    kernel: str
    estimator: str
    pooling: str
    notes: tuple[str, ...]
    samples: tuple[int, ...]
    grams: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]

    def save(self, path: str | Path) -> None:
        """Write the signature to an .npz file, whole or not at all; nothing is pickled.

        Raises
        ------
        ValueError
            If the name does not end in .npz.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"A signature is saved as .npz, got {path}.")
        texts = ("name", "layers", "order", "kernel", "estimator", "pooling", "notes", "samples")
        header = {"format": FORMAT, **{key: getattr(self, key) for key in texts}}
        arrays: dict[str, Any] = {f"gram_{i}": gram for i, gram in enumerate(self.grams)}
        arrays |= {f"scale_{i}": scale for i, scale in enumerate(self.scales)}
        temporary = path.with_name(f".{path.name}.part")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a signature.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not a signature, or is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with np.load(path, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                if header.pop("format") != FORMAT:
                    raise KeyError("format")
                count = len(header["samples"])
                grams = tuple(archive[f"gram_{i}"] for i in range(count))
                scales = tuple(archive[f"scale_{i}"] for i in range(count))
            texts: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in header.items()
            }
            return cls(**texts, grams=grams, scales=scales)
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a signature written by cka_probe, or is damaged: {error}") from error


def signature(
    model: nn.Module,
    data: Iterable[Any],
    *,
    name: str | None = None,
    layers: Layers = "leaves",
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    pooling: Pooling = "auto",
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Signature:
    """What ``model`` leaves on ``data``, for ``compare_signatures``.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    data, layers, kernel, estimator, pooling, forward, device, progress
        As ``compare``. Two signatures can be compared when ``data`` gives the same batches.
    name : str, optional
        What results call the model; its class name when left out.

    Returns
    -------
    Signature
        Takes n (n + 1) / 2 float32 numbers for each layer and minibatch of n samples.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As ``compare``. A pass that is interrupted leaves no signature.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> signature(net, torch.ones(4, 8), progress=False).layers
    ('0', '1')
    """
    kernel = kernel or Linear()
    minimum = MinibatchCKA(kernel=kernel, estimator=estimator).minimum
    keeper = GramKeeper(kernel)
    recorder = LayerRecorder(model, "model", layers, pooling, keeper, forward)
    order = SampleOrder()
    run = Pass([recorder], minimum, device=device, progress=progress, label="signature", order=order)
    grams: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    sizes: list[int] = []

    def consume(index: int, kept: list[list[Any]], samples: int) -> None:
        rows, scale = centred_rows(kept[0], estimator, torch.device("cpu"), keeper, recorder.names, index)
        upper = np.triu_indices(samples)
        grams.append(rows.float().numpy().reshape(-1, samples, samples)[:, *upper])
        scales.append(scale.numpy())
        sizes.append(samples)

    run.run(data, consume)
    if run.interrupted:
        raise KeyboardInterrupt("The pass was interrupted, so there is no signature of the whole data set.")
    run.require_batches()
    return Signature(
        name=name or type(recorder.model).__name__,
        layers=tuple(recorder.names),
        order=order.hexdigest(),
        kernel=repr(kernel),
        estimator=estimator,
        pooling=pooling if isinstance(pooling, str) else getattr(pooling, "__name__", repr(pooling)),
        notes=(
            *run.notes,
            *keeper.finish(name or type(recorder.model).__name__, recorder.names),
            *(f"{layer!r} was left out: {why}" for layer, why in recorder.left_out.items()),
        ),
        samples=tuple(sizes),
        grams=tuple(grams),
        scales=tuple(scales),
    )


def compare_signatures(x: Signature, y: Signature) -> SimilarityMatrix:
    """CKA of every layer of one model with every layer of another, from what they left on the same data.

    Parameters
    ----------
    x, y : Signature
        Rows and columns.

    Returns
    -------
    SimilarityMatrix
        As ``compare`` would have given, to the rounding of float32.

    Raises
    ------
    ValueError
        If the two were not made from the same samples in the same order, or in different ways.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> left = signature(net, torch.eye(8), progress=False)
    >>> compare_signatures(left, left).shape
    (2, 2)
    """
    for what in ("kernel", "estimator"):
        if getattr(x, what) != getattr(y, what):
            raise ValueError(
                f"The signatures were made with different settings: {what} {getattr(x, what)} of {x.name!r} and "
                f"{getattr(y, what)} of {y.name!r}."
            )
    if x.order != y.order or x.samples != y.samples:
        raise ValueError(
            f"The signatures of {x.name!r} and {y.name!r} are of different samples, or of another order or batch size. "
            "Make both from the same data without shuffling."
        )
    statistics = MinibatchCKA(kernel=kernel_from_name(x.kernel), estimator=x.estimator)
    same = y is x
    for batch, samples in enumerate(x.samples):
        rows_x = _unpack(x.grams[batch], samples)
        rows_y = rows_x if same else _unpack(y.grams[batch], samples)
        scale_x = torch.from_numpy(x.scales[batch])
        scale_y = scale_x if same else torch.from_numpy(y.scales[batch])
        statistics.update_rows(rows_x, scale_x, rows_y, scale_y, samples)
    sides: Sequence[list[tuple[str, str]]] = [[(s.name, layer) for layer in s.layers] for s in (x, y)]
    notes = [f"{s.name}: {note}" for s in ((x,) if same else (x, y)) for note in s.notes]
    meta = {"pooling": x.pooling, "model_x": x.name, "model_y": y.name, "partial": False}
    return minibatch_result(statistics, sides[0], sides[1], notes, meta)


def _unpack(triangles: np.ndarray, samples: int) -> torch.Tensor:
    full = np.zeros((triangles.shape[0], samples, samples), dtype=triangles.dtype)
    rows, columns = np.triu_indices(samples)
    full[:, rows, columns] = triangles
    full[:, columns, rows] = triangles
    return torch.from_numpy(full.reshape(triangles.shape[0], -1))
