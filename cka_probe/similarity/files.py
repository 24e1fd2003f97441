"""Write a similarity matrix to a .npz file and read it back. The file holds no pickle, so nothing in it is executed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..atomic_write import atomic_write
from ..safe_read import NpzFile, open_npz

if TYPE_CHECKING:
    from .matrix import SimilarityMatrix

__all__ = ["check_ending", "read_matrix", "write_matrix"]

FORMAT = "cka_probe.SimilarityMatrix"
VERSION = 1

# Arrays are entries of the archive; the other fields are one JSON text, the entry "header".
ARRAYS = ("values", "standard_error", "p_value", "chance")
HEADER = ("rows", "columns", "notes", "measure", "meta", "row_models", "column_models")

Matrix = TypeVar("Matrix")


# What writes other formats, by the ending of the file.
ELSEWHERE = {
    ".csv": "`.to_csv(path)` writes a table",
    ".tsv": "`.to_csv(path)` writes a table",
    ".xlsx": "`.to_csv(path)` writes a table that spreadsheets read",
    ".tex": "`.to_latex()` returns a table as LaTeX",
    ".json": "`.to_frame().to_json(path)` writes the values",
    ".parquet": "`.pairs().to_parquet(path)` writes a table",
    ".html": "`cka_probe.plotting.write_report(result, path)` writes a page",
    ".htm": "`cka_probe.plotting.write_report(result, path)` writes a page",
    ".npy": "`numpy.save(path, result.values)` writes the values alone",
} | dict.fromkeys(
    (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".eps", ".tif", ".tiff", ".webp"),
    "`.plot().figure.savefig(path)` draws a picture",
)


def check_ending(path: str | os.PathLike[str]) -> Path:
    """The path, if a similarity matrix may be saved under it: its ending is .npz, or it has none.

    Raises
    ------
    ValueError
        If the ending belongs to another format; the message says what writes that format.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in ("", ".npz"):
        return path
    other = f"{ELSEWHERE[ending]}; " if ending in ELSEWHERE else ""
    raise ValueError(f"{path} ends in {path.suffix}, but `save` writes .npz files: {other}save it as {path.stem}.npz.")


def write_matrix(matrix: SimilarityMatrix, path: Path) -> None:
    """Write a matrix to ``path``.

    Raises
    ------
    OSError
        If the file cannot be written (see ``cka_probe.atomic_write``).
    """
    header = {"format": FORMAT, "version": VERSION} | {name: getattr(matrix, name) for name in HEADER}
    arrays = {name: array for name in ARRAYS if (array := getattr(matrix, name)) is not None}
    if matrix.extra:  # a file without these can be read by older versions
        header["extra"] = list(matrix.extra)
        arrays |= {f"extra.{place}": array for place, array in enumerate(matrix.extra.values())}
    text = np.array(json.dumps(header))
    atomic_write(path, lambda file: np.savez_compressed(file, header=text, **arrays))


def read_matrix(path: Path, make: Callable[..., Matrix]) -> Matrix:
    """Result of ``make`` with the fields in the file as keyword arguments.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If ``write_matrix`` did not write the file, it is damaged, or its version is newer.
    """
    try:
        with open_npz(path) as archive:
            fields: dict[str, Any] = archive.header()
            size = len(fields["rows"]) * len(fields["columns"])
            fields |= {name: _pairs(archive, name, size) for name in ARRAYS if name in archive}
            if "extra" in fields:
                names = enumerate(fields["extra"])
                fields["extra"] = {name: _pairs(archive, f"extra.{place}", size) for place, name in names}
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        version = fields.pop("version")
        if version == VERSION:
            return make(**fields)
    except FileNotFoundError:
        raise
    # A damaged file raises one of a dozen exceptions of zipfile, zlib, json, numpy and `make`.
    except Exception as error:
        raise ValueError(
            f"{path} is not a similarity matrix saved by cka_probe, or the file is damaged "
            f"({type(error).__name__}: {error}). Save it again with SimilarityMatrix.save."
        ) from error
    raise ValueError(
        f"{path} was saved in version {version} of the format; this cka_probe reads version {VERSION}. "
        "Update cka_probe to read it."
    )


def _pairs(archive: NpzFile, name: str, size: int) -> np.ndarray:
    """An array of the file with a number for each of ``size`` pairs of layers."""
    if math.prod(archive.shape(name)) > max(size, 1):
        raise ValueError(f"{name!r} is larger than its {size} pairs of layers")
    array = archive[name]
    if array.dtype != np.float64:
        raise ValueError(f"{name!r} holds {array.dtype}, not float64")
    return array
