"""The folder of an atlas: one file for the sketch of each model, and one for its exact vectors if they are kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_write import atomic_write
from ..comparison.signature_files import (
    SKETCH_FORMAT,
    Signature,
    SketchedSignature,
    header_of,
    load_signature,
    packed_columns,
    read_header,
    rms_one,
)
from ..comparison.signature_vectors import Sketch, from_vectors, sketched, vectors_of
from ..safe_read import open_npz, read_npy

__all__ = ["FORMAT", "SAME", "Entry", "Store", "check_metadata", "check_same", "model_stem"]

FORMAT = "cka_probe.atlas"
VERSION = 1
SAME = ("kernel", "estimator", "order", "samples")
"""Fields that all signatures of an atlas share."""
NO_FILE = (0, 0)


@dataclass(frozen=True)
class Entry:
    """What an atlas knows of a model without its vectors.

    Attributes
    ----------
    stem : str
        Its files without their endings.
    header : dict
        What was compared, and how (``signature_files.SHARED``).
    metadata : dict of str to text, number, bool or None
        The user's own facts about the model.
    exact : bool
        Whether its exact vectors are there.
    stamp : tuple of int
        Size and time of its file, by which a changed file is noticed; ``NO_FILE`` if another process has removed it.
    """

    stem: str
    header: dict[str, Any]
    metadata: dict[str, Any]
    exact: bool
    stamp: tuple[int, int]

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.header["name"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers."""
        return tuple(self.header["layers"])


class Store:
    """Read and write the files of an atlas.

    Parameters
    ----------
    folder : path
        The atlas; made if it does not exist.
    sketch : Sketch, optional
        For a new atlas; by default ``Sketch()``. That of an existing atlas is read from it.

    Raises
    ------
    ValueError
        If the folder holds other files and no atlas, the file ``atlas.json`` is damaged, or ``sketch`` differs from
        that of the atlas.
    NotADirectoryError
        If ``folder`` is a file.
    OSError
        If the folder cannot be made.
    """

    def __init__(self, folder: str | Path, sketch: Sketch | None) -> None:
        self.folder = Path(folder)
        self.models, self.exact, self.cache = (self.folder / name for name in ("models", "exact", "cache"))
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file, not the folder of an atlas.")
        about = self.folder / "atlas.json"
        if not about.is_file():
            self._create(about, sketch or Sketch())
        self.sketch = _read_about(about)
        if sketch is not None and sketch != self.sketch:
            raise ValueError(
                f"The atlas {self.folder} was made with {self.sketch}, not {sketch}. Leave `sketch` out, or choose "
                "another folder."
            )

    def _create(self, about: Path, sketch: Sketch) -> None:
        """Describe a new atlas, unless another process does so at this moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with os.scandir(self.folder) as found:
            others = [one.name for one in found if not one.name.startswith(f".{about.name}.")]
        if not others:
            text = {"format": FORMAT, "version": VERSION, "size": sketch.size, "seed": sketch.seed}
            atomic_write(about, json.dumps(text, indent=1) + "\n")
        elif not about.is_file():
            raise ValueError(
                f"{self.folder} holds other files and no atlas. Choose an empty folder, or one that does not exist yet."
            )

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of the file of each model, by its stem."""
        if not self.models.is_dir():
            return {}
        files = sorted(path for path in self.models.glob("*.npz") if path.name[0] != ".")
        return {path.stem: stamp for path in files if (stamp := _stamp(path)) != NO_FILE}

    def entry(self, stem: str, stamp: tuple[int, int]) -> Entry:
        """What the file of a model says of it.

        Raises
        ------
        FileNotFoundError
            If another process has removed the file.
        ValueError
            If it is no sketch of the kind of this atlas, or is damaged.
        """
        path = self.models / f"{stem}.npz"
        try:
            with open_npz(path) as archive:
                header = archive.header()
                if header.get("format") != SKETCH_FORMAT:
                    raise ValueError(f"its format is {header.get('format')!r}")
                fields = read_header(archive)
                if (header["size"], header["seed"]) != (self.sketch.size, self.sketch.seed):
                    raise ValueError(f"its sketch has size={header['size']} and seed={header['seed']}")
            metadata = check_metadata(header.get("metadata", {}))
            if model_stem(fields["name"]) != stem:
                raise ValueError(f"it is called {fields['name']!r}, to which another file belongs")
            return Entry(stem, fields, metadata, self._exact_path(stem).is_file(), stamp)
        except FileNotFoundError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no model of this atlas, or is damaged: {error}. Delete it.") from error

    def write(self, signature: Signature | SketchedSignature, metadata: dict[str, Any], *, exact: bool) -> Entry:
        """Write the files of a model.

        An old sketch is deleted first, the new one is written last, and a model is there when its sketch is. So a crash
        leaves no sketch of one network beside the exact vectors of another.

        Raises
        ------
        ValueError
            If the signature is a sketch of another size or seed.
        OSError
            If a file cannot be written.
        """
        stem = model_stem(signature.name)
        sketch = sketched(signature, self.sketch)
        exact = exact and isinstance(signature, Signature)
        self.models.mkdir(exist_ok=True)
        path = self.models / f"{stem}.npz"
        path.unlink(missing_ok=True)
        if exact and isinstance(signature, Signature):
            self.exact.mkdir(exist_ok=True)
            vectors = vectors_of(signature)
            if all(gram.dtype == np.float16 for gram in signature.grams):
                vectors = rms_one(vectors)[0].astype(np.float16)
            atomic_write(self._exact_path(stem), lambda file: np.save(file, vectors))
        else:
            self._exact_path(stem).unlink(missing_ok=True)
        header = {
            "format": SKETCH_FORMAT,
            **header_of(sketch),
            "size": sketch.size,
            "seed": sketch.seed,
            "largest_error": sketch.largest_error,
            "metadata": metadata,
        }
        atomic_write(path, lambda file: np.savez(file, header=np.array(json.dumps(header)), vectors=sketch.vectors))
        return Entry(stem, _tuples(header_of(sketch)), metadata, exact, _stamp(path))

    def remove(self, entry: Entry) -> None:
        """Delete the files of a model."""
        (self.models / f"{entry.stem}.npz").unlink(missing_ok=True)
        self._exact_path(entry.stem).unlink(missing_ok=True)

    def sketch_of(self, entry: Entry) -> SketchedSignature:
        """The sketch of a model.

        Raises
        ------
        FileNotFoundError, ValueError
            If its file is not there any more, or is damaged.
        """
        found = load_signature(self.models / f"{entry.stem}.npz")
        if not isinstance(found, SketchedSignature):
            raise ValueError(f"The file of {entry.name!r} in {self.models} holds no sketch.")
        return found

    def exact_vectors(self, entry: Entry) -> np.ndarray:
        """The exact vectors of a model (layers, columns), as they lie on the disk: rows are read when they are used.

        Raises
        ------
        ValueError
            If the file is damaged or has another shape.
        """
        path = self._exact_path(entry.stem)
        columns = packed_columns(entry.header["samples"], entry.header["estimator"])
        try:
            found = read_npy(path, mapped=True)
            if found.shape != (len(entry.layers), columns) or found.dtype.kind != "f":
                raise ValueError(f"it holds {found.dtype} numbers of shape {found.shape}")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} does not hold the exact vectors of {entry.name!r}: {error}.") from error
        return found

    def signature_of(self, entry: Entry) -> Signature:
        """The signature of a model, from its exact vectors."""
        return from_vectors(self.exact_vectors(entry), entry.header)

    def _exact_path(self, stem: str) -> Path:
        return self.exact / f"{stem}.npy"


def model_stem(name: str) -> str:
    """Name of the files of a model: what can be read of its name, and a digest, so that no two names share a file.

    Examples
    --------
    >>> model_stem("resnet/epoch 10")
    'resnet-epoch-10-29ad1559a741'
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:80]
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}".lstrip("-")


def check_metadata(metadata: Any) -> dict[str, Any]:
    """A copy of the metadata in types of JSON.

    Raises
    ------
    TypeError
        If it is no mapping of texts to texts, numbers, bools or None.

    Examples
    --------
    >>> check_metadata({"width": np.int64(3)})
    {'width': 3}
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"`metadata` must be a dict such as {{'width': 32}}, got {metadata!r}.")
    found = {key: value.item() if isinstance(value, np.generic) else value for key, value in metadata.items()}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | None):
            raise TypeError(f"`metadata` must map texts to texts, numbers, bools or None; got {key!r}: {value!r}.")
    return found


def check_same(first: Entry, fields: Mapping[str, Any], what: str) -> None:
    """Raise ValueError if a signature with these fields (``SAME``) cannot be compared with the model ``first``.

    Parameters
    ----------
    first : Entry
        A model of the atlas.
    fields : mapping
        Of the signature.
    what : str
        The signature, at the start of the message.
    """
    for key in ("kernel", "estimator"):
        if fields[key] != first.header[key]:
            raise ValueError(
                f"{what} has the {key} {fields[key]}, but the models of the atlas, such as {first.name!r}, have "
                f"{first.header[key]}."
            )
    if any(fields[key] != first.header[key] for key in ("order", "samples")):
        raise ValueError(
            f"{what} comes from other samples, another order or another batch size than the models of the atlas, "
            f"such as {first.name!r}. Make all from the same data without shuffling."
        )


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file; ``NO_FILE`` if another process has removed it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return NO_FILE
    return stat.st_size, stat.st_mtime_ns


def _read_about(path: Path) -> Sketch:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}")
        if about["version"] != VERSION:
            raise ValueError(f"its version is {about['version']}; update cka_probe to read it")
        return Sketch(about["size"], about["seed"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe an atlas, or is damaged: {error}.") from error


def _tuples(header: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in header.items()}
