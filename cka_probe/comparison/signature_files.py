"""Signatures of networks and their files: the centred Gram matrices themselves, or a sketch of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..atomic_write import atomic_write
from ..estimators.kernels import kernel_from_name
from ..estimators.validation import check_estimator
from ..safe_read import NpzFile, open_npz
from ..similarity.text import printable

__all__ = [
    "FORMAT",
    "SHARED",
    "SKETCH_FORMAT",
    "Signature",
    "SketchedSignature",
    "check_npz",
    "header_of",
    "load_signature",
    "packed_columns",
    "read_header",
    "rms_one",
]

FORMAT = "cka_probe.signature"
SKETCH_FORMAT = "cka_probe.sketched_signature"

TEXTS = ("name", "order", "kernel", "estimator", "pooling")
SHARED = (*TEXTS, "layers", "notes", "samples", "undefined")
"""Fields that both kinds of signatures have: what was compared, and how."""


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
    grams : tuple of arrays (layers, n (n + 1) / 2) of float32 or float16
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
        return _shown("Signature", self, sum(gram.nbytes for gram in self.grams))

    def half(self) -> Self:
        """The same signature in float16: half the size.

        Each number is rounded by at most 0.05 % (2^-11). CKA moves by far less, because the errors are independent: by
        up to 2e-5 with four minibatches of 16 samples, and less with more (tests/comparison/test_signature_forms.py).
        """
        pairs = [rms_one(gram) for gram in self.grams]
        return replace(
            self,
            grams=tuple(rows.astype(np.float16) for rows, _ in pairs),
            scales=tuple(scale * size for scale, (_, size) in zip(self.scales, pairs, strict=True)),
        )

    def save(self, path: str | Path) -> None:
        """Write the signature to an .npz file without pickle, completely or not at all.

        Raises
        ------
        ValueError
            If the name does not end in .npz.
        OSError
            If the file cannot be written. An existing file then stays unchanged.
        """
        path = check_npz(path)
        header = json.dumps({"format": FORMAT, **header_of(self)})
        arrays: dict[str, Any] = {f"gram_{i}": gram for i, gram in enumerate(self.grams)}
        arrays |= {f"scale_{i}": scale for i, scale in enumerate(self.scales)}
        atomic_write(path, lambda file: np.savez_compressed(file, header=np.array(header), **arrays))

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
        found = load_signature(path)
        if not isinstance(found, cls):
            raise ValueError(
                f"{path} is a sketch of a signature. Read it with cka_probe.SketchedSignature.load or "
                "cka_probe.load_signature."
            )
        return found


@dataclass(frozen=True)
class SketchedSignature:
    """A sketch of the centred Gram matrices of one model on a data set: some thousand numbers for each layer.

    The inner product of the vectors of two layers, in two sketches of one size and seed, is an unbiased estimate of
    their CKA. ``compare_signatures`` takes the cosine instead, whose error is smaller for layers that are alike.

    Attributes
    ----------
    name, layers, order, kernel, estimator, pooling, notes, samples, undefined
        As in ``Signature``.
    size, seed : int
        Those of the sketch.
    vectors : array (layers, m) of float16
        One row for each layer, of norm about 1; zeros for a layer without any spread. m is ``size``, or the number of
        entries of all Gram matrices if that is not larger; then nothing is lost.
    """

    name: str
    layers: tuple[str, ...]
    order: str
    kernel: str
    estimator: str
    pooling: str
    notes: tuple[str, ...]
    samples: tuple[int, ...]
    size: int
    seed: int
    vectors: np.ndarray
    undefined: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return _shown(f"Sketch of the signature, {self.size:,} numbers a layer,", self, self.vectors.nbytes)

    @property
    def exact(self) -> bool:
        """Whether the vectors hold the Gram matrices themselves, because these are no larger than the sketch."""
        return packed_columns(self.samples, self.estimator) <= self.size

    @property
    def largest_error(self) -> float:
        """Standard error of CKA from the sketch where it is largest, at a CKA of 0: ``1 / sqrt(size)``, or 0."""
        return 0.0 if self.exact else self.size**-0.5

    def save(self, path: str | Path) -> None:
        """Write the sketch to an .npz file without pickle, completely or not at all.

        Raises
        ------
        ValueError
            If the name does not end in .npz.
        OSError
            If the file cannot be written. An existing file then stays unchanged.
        """
        path = check_npz(path)
        about = {"size": self.size, "seed": self.seed, "largest_error": self.largest_error}
        header = json.dumps({"format": SKETCH_FORMAT, **header_of(self), **about})
        # Without compression: noise in half precision shrinks by a few percent, and reading takes ten times longer.
        atomic_write(path, lambda file: np.savez(file, header=np.array(header), vectors=self.vectors))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a sketch from a file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a sketch, or is damaged.
        """
        found = load_signature(path)
        if not isinstance(found, cls):
            raise ValueError(f"{path} holds the signature itself, no sketch. Read it with cka_probe.Signature.load.")
        return found


def load_signature(path: str | Path) -> Signature | SketchedSignature:
    """Read a signature, or the sketch of one, from a file.

    Nothing in the file is executed, and a file that is not what it claims to be is refused: so files of strangers may
    be read.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Signature or SketchedSignature
        What the file holds.

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
            written = archive.header().get("format")
            if written == SKETCH_FORMAT:
                return _read_sketch(archive)
            if written == FORMAT:
                return _read_signature(archive)
            raise ValueError(f"its format is {written!r}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a signature written by cka_probe, or is damaged: {error}") from error


def _read_signature(archive: NpzFile) -> Signature:
    fields = read_header(archive)
    layers, samples = len(fields["layers"]), fields["samples"]
    if len(archive) != 1 + 2 * len(samples):
        raise ValueError(f"it names {len(samples)} minibatches and holds {len(archive) - 1} arrays")
    for i, n in enumerate(samples):
        if archive.shape(f"gram_{i}") != (layers, n * (n + 1) // 2):
            raise ValueError(f"the Gram matrices of minibatch {i} have another shape than {n} samples give")
        if archive.shape(f"scale_{i}") != (layers,):
            raise ValueError(f"the scales of minibatch {i} are not one for each layer")
    grams = tuple(_finite(archive[f"gram_{i}"]) for i in range(len(samples)))
    scales = tuple(_finite(archive[f"scale_{i}"]) for i in range(len(samples)))
    return Signature(**fields, grams=grams, scales=scales)


def _read_sketch(archive: NpzFile) -> SketchedSignature:
    fields = read_header(archive)
    header = archive.header()
    size, seed = header["size"], header["seed"]
    if type(size) is not int or type(seed) is not int or size < 1 or seed < 0:
        raise ValueError("size and seed of its sketch are no positive integers")
    if set(archive) != {"header", "vectors"}:
        raise ValueError("it holds other arrays than `vectors`")
    shape = len(fields["layers"]), min(size, packed_columns(fields["samples"], fields["estimator"]))
    if archive.shape("vectors") != shape:
        raise ValueError(f"its sketch has the shape {archive.shape('vectors')}, but its header gives {shape}")
    return SketchedSignature(**fields, size=size, seed=seed, vectors=_finite(archive["vectors"]))


def header_of(one: Signature | SketchedSignature) -> dict[str, Any]:
    """What was compared, and how, as JSON."""
    return {key: getattr(one, key) for key in SHARED} | {"undefined": dict(one.undefined)}


def read_header(archive: NpzFile) -> dict[str, Any]:
    """The fields that both kinds of signatures have, checked.

    Raises
    ------
    ValueError, KeyError, TypeError
        If a field is missing, is of another kind, or names an unknown kernel or estimator.
    """
    header = archive.header()
    found = {key: header[key] for key in SHARED if key != "undefined"}
    found["undefined"] = header.get("undefined", {})
    if not all(isinstance(found[key], str) for key in TEXTS):
        raise ValueError("its name and settings are no texts")
    for key in ("layers", "notes"):
        if not isinstance(found[key], list) or not all(isinstance(text, str) for text in found[key]):
            raise ValueError(f"its {key} are no texts")
    counts = found["samples"]  # a file may claim a great many: no loop of Python over them
    if not isinstance(counts, list) or not (set(map(type, counts)) <= {int} and min(counts, default=1) > 0):
        raise ValueError("the numbers of samples are no positive integers")
    undefined = found["undefined"]
    if not isinstance(undefined, dict) or not all(isinstance(text, str) for text in undefined.values()):
        raise ValueError("its reasons for undefined layers are no texts")
    if len(set(found["layers"])) < len(found["layers"]):
        raise ValueError("it names a layer twice")
    check_estimator(found["estimator"])
    kernel_from_name(found["kernel"])
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def packed_columns(samples: tuple[int, ...], estimator: str) -> int:
    """Entries of the Gram matrices of all minibatches that are needed: one triangle, with the diagonal if biased."""
    diagonal = 1 if estimator == "biased" else -1
    return sum(n * (n + diagonal) // 2 for n in samples)


def rms_one(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows divided by their root mean square, in which float16 resolves them best, and the divisors (layers,).

    No entry is then above the root of the number of entries, so nothing overflows.
    """
    size = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
    size = np.where(size > 0, size, 1.0)
    return rows / size[:, None], size


def check_npz(path: str | Path) -> Path:
    """The path; ValueError unless it ends in .npz."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"A signature is saved as .npz, got {path}.")
    return path


def _shown(what: str, one: Signature | SketchedSignature, size: int) -> str:
    """One line for people: the model, its layers, the samples, the settings, the size."""
    ends = one.layers if len(one.layers) < 3 else (one.layers[0], "...", one.layers[-1])
    parts = [
        f"{len(one.layers)} layers ({', '.join(ends)})",
        f"{sum(one.samples):,} samples in {len(one.samples)} minibatches",
        f"kernel {one.kernel}, {one.estimator}, pooling {one.pooling}",
        f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB",
        *([f"{len(one.notes)} note{'s' * (len(one.notes) > 1)}"] if one.notes else []),
    ]
    return printable(f"<{what} of {one.name}: {'; '.join(parts)}>")


def _finite(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise ValueError("its arrays hold no floating numbers")
    if not np.isfinite(array).all():
        raise ValueError("its arrays hold NaN or infinity")
    return array
