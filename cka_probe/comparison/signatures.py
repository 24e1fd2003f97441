"""Save the centred Gram matrices of one model on a data set (its signature), and compare them later without the model.

Two signatures of the same samples, even from different machines, give the same similarities as ``compare`` on both
models, up to float32 rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ..atomic_write import atomic_write
from ..capture.batches import Forward
from ..capture.layers import Layers
from ..capture.networks import check_network
from ..capture.pooling import Pooling
from ..capture.sample_order import SampleOrder
from ..estimators.kernels import Kernel, kernel_from_name
from ..estimators.minibatch import MinibatchCKA
from ..estimators.validation import check_estimator
from ..safe_read import open_npz
from ..similarity.matrix import SimilarityMatrix
from ..similarity.text import printable
from .grams.keeper import GramKeeper
from .minibatch import centred_rows, minibatch_result
from .notes import drift_notes, rows_are_samples
from .places import places
from .request import ComparedModel, Request

__all__ = ["FORMAT", "Signature", "compare_signatures", "signature"]

FORMAT = "cka_probe.signature"


@dataclass(frozen=True)
class Signature:
    """The centred Gram matrices of one model on a data set.

    Attributes
    ----------
    name : str
        Name of the model in results.
    layers : tuple of str
        Layer names, in the order of execution.
    order : str
        Digest of the samples and their order. Only signatures with equal digests can be compared.
    kernel, estimator, pooling : str
        The settings of the pass.
    notes : tuple of str
        Layers and batches that were left out.
    samples : tuple of int
        Number of samples of each minibatch.
    grams : tuple of arrays (layers, n (n + 1) / 2) of float32
        For each minibatch the upper triangles of the centred Gram matrices, row by row, each divided by its scale.
    scales : tuple of arrays (layers,) of float64
        For each minibatch the divisors of the Gram matrices.
    undefined : mapping of str to str
        For layers whose Gram matrices are zero though they are not constant, what they are.
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
    undefined: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        ends = self.layers if len(self.layers) < 3 else (self.layers[0], "...", self.layers[-1])
        size = sum(gram.nbytes for gram in self.grams)
        parts = [
            f"{len(self.layers)} layers ({', '.join(ends)})",
            f"{sum(self.samples):,} samples in {len(self.samples)} minibatches",
            f"kernel {self.kernel}, {self.estimator}, pooling {self.pooling}",
            f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB",
            *([f"{len(self.notes)} note{'s' * (len(self.notes) > 1)}"] if self.notes else []),
        ]
        return printable(f"<Signature of {self.name}: {'; '.join(parts)}>")

    def save(self, path: str | Path) -> None:
        """Write the signature to an .npz file without pickle, completely or not at all.

        Raises
        ------
        ValueError
            If the name does not end in .npz.
        OSError
            If the file cannot be written. An existing file then stays unchanged.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"A signature is saved as .npz, got {path}.")
        texts = ("name", "layers", "order", "kernel", "estimator", "pooling", "notes", "samples", "undefined")
        header = {"format": FORMAT, **{key: getattr(self, key) for key in texts}}
        arrays: dict[str, Any] = {f"gram_{i}": gram for i, gram in enumerate(self.grams)}
        arrays |= {f"scale_{i}": scale for i, scale in enumerate(self.scales)}
        atomic_write(path, lambda file: np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a signature from a file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a signature, or is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with open_npz(path) as archive:
                header = archive.header()
                if header.pop("format") != FORMAT:
                    raise KeyError("format")
                layers, samples = len(header["layers"]), header["samples"]
                if not all(isinstance(text, str) for text in (header["name"], *header["layers"])):
                    raise ValueError("its names are no texts")
                if not all(type(n) is int and n > 0 for n in samples):
                    raise ValueError("the numbers of samples are no positive integers")
                if len(archive) != 1 + 2 * len(samples):
                    raise ValueError(f"it names {len(samples)} minibatches and holds {len(archive) - 1} arrays")
                for i, n in enumerate(samples):
                    if archive.shape(f"gram_{i}") != (layers, n * (n + 1) // 2):
                        raise ValueError(f"the Gram matrices of minibatch {i} have another shape than {n} samples give")
                    if archive.shape(f"scale_{i}") != (layers,):
                        raise ValueError(f"the scales of minibatch {i} are not one for each layer")
                grams = tuple(archive[f"gram_{i}"] for i in range(len(samples)))
                scales = tuple(archive[f"scale_{i}"] for i in range(len(samples)))
            if any(array.dtype.kind != "f" for array in (*grams, *scales)):
                raise ValueError("its arrays hold no floating numbers")
            texts: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in header.items()
            }
            return cls(**texts, grams=grams, scales=scales)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a signature written by cka_probe, or is damaged: {error}") from error


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
    progress: bool = True,
) -> Signature:
    """The signature of ``model`` on ``data``, for ``compare_signatures``.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    data, layers, exclude, kernel, estimator, pooling, forward, sample_axis, device, progress
        As ``compare``. Two signatures can be compared if ``data`` yielded the same batches for both.
    name : str, optional
        Name of the model in results; its class name when left out.

    Returns
    -------
    Signature
        It holds n (n + 1) / 2 float32 numbers for each layer and minibatch of n samples.

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
        progress=progress,
    )
    _check_readable(request.kernel)
    keeper = GramKeeper(request.kernel, drift=rows_are_samples(request.pooling))
    recorder = request.recorder(ComparedModel(model, "model", layers, exclude), keeper)
    order = SampleOrder()
    run = request.make_pass([recorder], check_estimator(estimator), order=order, label="signature")
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
    layers_left = places([recorder])
    return Signature(
        name=name or type(recorder.model).__name__,
        layers=tuple(recorder.compared),
        order=order.hexdigest(),
        kernel=repr(request.kernel),
        estimator=estimator,
        pooling=request.pooling_name,
        notes=(
            *run.notes,
            *_keeper_notes(keeper, name or type(recorder.model).__name__, recorder.names, recorder.compared),
            *recorder.notes(name=False),
        ),
        samples=tuple(sizes),
        grams=tuple(gram[layers_left] for gram in grams),
        scales=tuple(scale[layers_left] for scale in scales),
        undefined=keeper.findings.reasons(),
    )


def _keeper_notes(keeper: GramKeeper, name: str, layers: Sequence[str], compared: Sequence[str]) -> list[str]:
    """Notes of the keeper, without the name of the model before them."""
    notes = [*keeper.finish(name, layers), *keeper.findings.notes(name, layers, compared)]
    drift = None if keeper.batch_means is None else keeper.batch_means.drift()
    return [*(note.removeprefix(f"{name}: ") for note in notes), *drift_notes([(name, drift)])]


def compare_signatures(x: Signature, y: Signature) -> SimilarityMatrix:
    """CKA of every layer of one model with every layer of another, from their signatures on the same data.

    Parameters
    ----------
    x, y : Signature
        Rows and columns of the result.

    Returns
    -------
    SimilarityMatrix
        Equal to the result of ``compare`` up to float32 rounding.

    Raises
    ------
    TypeError
        If one is no signature.
    ValueError
        If the signatures differ in kernel or estimator, in their samples, or in the order or batches of the samples.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    >>> left = signature(net, torch.eye(8), progress=False)
    >>> compare_signatures(left, left).shape
    (2, 2)
    """
    for side in (x, y):
        if not isinstance(side, Signature):
            raise TypeError(f"`compare_signatures` takes two signatures, got {type(side).__name__}.")
    for what in ("kernel", "estimator"):
        if getattr(x, what) != getattr(y, what):
            raise ValueError(
                f"The signatures were made with different settings: {what} {getattr(x, what)} of {x.name!r} and "
                f"{getattr(y, what)} of {y.name!r}."
            )
    if x.order != y.order or x.samples != y.samples:
        raise ValueError(
            f"The signatures of {x.name!r} and {y.name!r} differ in their samples, their order or their batch size. "
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
    reasons = {(s.name, layer): why for s in (x, y) for layer, why in s.undefined.items()}
    return minibatch_result(statistics, sides[0], sides[1], notes, meta, reasons=reasons)


def _check_readable(kernel: Kernel) -> None:
    """Raise ValueError unless the kernel can be read back from its ``repr``, which is what a signature holds of it."""
    try:
        kernel_from_name(repr(kernel))
    except ValueError as error:
        raise ValueError(
            f"A signature needs a kernel of cka_probe, because it holds only its name, but got {kernel!r}. `compare` "
            "takes any function as its kernel."
        ) from error


def _unpack(triangles: np.ndarray, samples: int) -> torch.Tensor:
    """Flattened symmetric matrices (layers, samples * samples) from their upper triangles."""
    full = np.zeros((triangles.shape[0], samples, samples), dtype=triangles.dtype)
    rows, columns = np.triu_indices(samples)
    full[:, rows, columns] = triangles
    full[:, columns, rows] = triangles
    return torch.from_numpy(full.reshape(triangles.shape[0], -1))
