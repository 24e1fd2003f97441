"""Pictures of characters of many fonts: a data set of 62 classes that any machine with fonts can make."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from ...atomic_write import atomic_write
from ...safe_read import open_npz
from .fonts import Face, draw, faces_of, font_files, problem_of
from .images import GreyToChannels, StoredImages
from .options import check_flag, check_integer

__all__ = ["CHARACTERS", "glyphs", "make_glyphs"]

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""The characters of a data set, in the order of their labels."""

TEST_SHARE = 0.25

# A face whose pictures are further than this from the usual ones of the same characters is no alphabet: its mean
# correlation with the means over all faces.
LEAST_LIKENESS = 0.35

# Faces of two families with a higher correlation are one design: Computer Modern and Latin Modern have 0.99. Different
# designs of one kind, such as Helvetica and Inter, stay below 0.96.
SAME_DESIGN = 0.97


def make_glyphs(
    folder: str | Path,
    *,
    fonts: Sequence[str | Path] | None = None,
    characters: str = CHARACTERS,
    size: int = 32,
    pictures: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Draw the characters of all fonts, and split the faces into a training and a test part, family by family.

    No family is in both parts. Families that share the first word of their names (or its beginning), or two of whose
    faces are nearly alike (a mean correlation of 0.97 over the characters: copies under another name), count as one. A
    face is left out if it lacks a character, has no small letters, has signs in the place of letters, or draws all
    characters as another face does.

    Each picture is turned by up to 8 degrees, moved by up to 1/16 of its size and scaled by up to a tenth. The same
    fonts and seed give the same files. A font that is added changes no picture of another, but perhaps its part.

    Parameters
    ----------
    folder : str or Path
        Gets ``train.npz`` and ``test.npz`` (images, labels, faces), ``fonts.csv`` (every face, its part, or why it was
        left out) and ``sheet.png``, a sheet of pictures to look at.
    fonts : sequence of path, optional
        Folders with font files. Without them, all fonts that fontconfig knows.
    characters : str
        One class for each, in this order.
    size : int
        Height and width of the pictures.
    pictures : int
        Number of pictures of each character of each face, each turned and moved in another way.
    seed : int
        Chooses the parts and the changes.
    progress : bool
        Whether a progress bar is shown.

    Returns
    -------
    list of dict
        The lines of ``fonts.csv``: file, number, family, style, group, part, and reason, which is empty for faces that
        are used.

    Raises
    ------
    FileNotFoundError
        If there are no fonts; the message says what to install.
    ValueError
        If an argument is out of range, or the fonts are of fewer than two families.
    TypeError
        If an argument has the wrong type.
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> lines = make_glyphs("glyphs")  # doctest: +SKIP
    >>> train, test = glyphs("glyphs")  # doctest: +SKIP
    """
    from ...progress_bar import tqdm

    check_integer("size", size, at_least=8)
    check_integer("pictures", pictures, at_least=1)
    check_integer("seed", seed, at_least=0)
    if not isinstance(characters, str) or len(set(characters)) < max(2, len(characters)):
        raise ValueError(f"`characters` must be a text of two or more different characters, got {characters!r}.")
    faces = list(faces_of(font_files(fonts)))
    reasons: dict[Face, str] = {}
    upright: dict[Face, np.ndarray] = {}
    for face in tqdm(faces, desc="fonts", disable=not progress):
        problem = problem_of(face, characters)
        if problem is not None:
            reasons[face] = problem
        else:
            upright[face] = np.stack([draw(face, character, size, None) for character in characters])
    reasons |= _unlike(upright)
    reasons |= _copies({face: images for face, images in upright.items() if face not in reasons})
    used = [face for face in faces if face not in reasons]
    groups = _groups({face: upright[face] for face in used})
    if len(set(groups.values())) < 2:
        raise ValueError(
            f"Fonts of two or more families are needed, one to train and one to test: of {len(faces)} faces "
            f"{len(used)} of {len(set(groups.values()))} families can be used. Install more fonts, for example "
            "fonts-dejavu, fonts-lato and fonts-cmu."
        )
    tested = _tested(groups, seed)
    parts = {face: "test" if groups[face] in tested else "train" for face in used}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        members = [face for face in used if parts[face] == part]
        images = [
            draw(face, character, size, seed, variant)
            for face in tqdm(members, desc=part, disable=not progress)
            for character in characters
            for variant in range(pictures)
        ]
        count = len(characters) * pictures
        arrays: dict[str, Any] = {
            "images": np.stack(images),
            "labels": np.tile(np.repeat(np.arange(len(characters)), pictures), len(members)),
            "faces": np.repeat(np.arange(len(members)), count),
            "groups": np.repeat(np.unique([groups[face] for face in members], return_inverse=True)[1], count),
            "characters": np.array([ord(character) for character in characters]),
        }
        stored = io.BytesIO()
        np.savez_compressed(stored, **arrays)
        atomic_write(path / f"{part}.npz", stored.getvalue())
        if part == "train":
            atomic_write(path / "sheet.png", _sheet(arrays["images"], arrays["labels"], len(characters)))
    lines = [
        {
            "file": str(face.file),
            "number": str(face.number),
            "family": face.family,
            "style": face.style,
            "group": groups.get(face, ""),
            "part": parts.get(face, ""),
            "reason": reasons.get(face, ""),
        }
        for face in faces
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    atomic_write(path / "fonts.csv", text.getvalue())
    return lines


def glyphs(
    folder: str | Path,
    train_per_class: int | None = None,
    seed: int = 0,
    channels: int = 3,
    *,
    augment: bool = False,
    validation_per_class: int = 0,
) -> tuple[StoredImages, StoredImages]:
    """The pictures that `make_glyphs` has drawn, as a (train, test) pair. No face is in both.

    Pixels are scaled to a mean of 0 and a standard deviation of 1 over all training pictures. Smaller training sets are
    subsets of larger ones, and none has a face of the validation part, whose faces depend on `seed` alone.

    Parameters
    ----------
    folder : str or Path
        The folder of `make_glyphs`.
    train_per_class : int, optional
        Training pictures of each character. All if None.
    seed : int
        Chooses the training pictures, and the faces for validation.
    channels : int
        Number of channels; each holds the same grey picture.
    augment : bool
        Pad training pictures by 1/16 of their size and crop them at a random position.
    validation_per_class : int
        If positive, as many training pictures of each character are held out, all of other families than those that
        are left, and returned instead of the test pictures.

    Returns
    -------
    train, test : StoredImages
        Pairs of picture, float32 (channels, size, size), and label, an int64 scalar. ``classes`` holds the characters.

    Raises
    ------
    FileNotFoundError
        If the folder has no such files.
    ValueError
        If a file is damaged, an argument is out of range, or there are too few pictures.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> train, test = glyphs("glyphs", train_per_class=100)  # doctest: +SKIP
    """
    check_integer("seed", seed, at_least=0)
    check_integer("channels", channels, at_least=1)
    check_integer("validation_per_class", validation_per_class, at_least=0)
    check_flag("augment", augment)
    if train_per_class is not None:
        check_integer("train_per_class", train_per_class, at_least=1)
    whole, tests = (_read(Path(folder), part) for part in ("train", "test"))
    if not np.array_equal(whole["characters"], tests["characters"]):
        raise ValueError(f"train.npz and test.npz in {str(folder)!r} are of two runs of make_glyphs. Draw them again.")
    order = np.random.default_rng(seed).permutation(int(whole["groups"].max()) + 1)
    place = np.argsort(order)[whole["groups"]]  # of each picture's group in the order of the seed
    train_rows, held_out = [], []
    first = int(place.max()) + 1
    if validation_per_class:
        counts = np.bincount(place[whole["labels"] == 0])[::-1].cumsum()
        first -= int(np.searchsorted(counts, validation_per_class)) + 1
    for label in range(len(whole["characters"])):
        rows = np.flatnonzero(whole["labels"] == label)
        rows = rows[np.argsort(place[rows], kind="stable")]
        kept, rest = rows[place[rows] < first], rows[place[rows] >= first]
        if len(kept) < (train_per_class or 1) or len(rest) < validation_per_class:
            raise ValueError(
                f"{str(folder)!r} has {len(rows)} training pictures of each character: too few for train_per_class="
                f"{train_per_class} and validation_per_class={validation_per_class} of other families."
            )
        train_rows.append(kept[:train_per_class])
        held_out.append(rest[:validation_per_class])
    pixels = whole["images"] / 255
    names = [chr(code) for code in whole["characters"]]
    plain = GreyToChannels(float(pixels.mean()), float(pixels.std()), channels)
    size = whole["images"].shape[1]
    changed = transforms.Compose([transforms.RandomCrop(size, padding=max(1, size // 16)), plain]) if augment else plain

    def part(arrays: dict[str, np.ndarray], rows: Any, transform: Any) -> StoredImages:
        images, labels = (torch.from_numpy(arrays[name][rows]) for name in ("images", "labels"))
        return StoredImages(images, labels, names, transform)

    train = part(whole, np.concatenate(train_rows), changed)
    return train, part(whole, np.concatenate(held_out), plain) if validation_per_class else part(
        tests, slice(None), plain
    )


def _read(folder: Path, part: str) -> dict[str, np.ndarray]:
    path = folder / f"{part}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {part}.npz in {str(folder)!r}. make_glyphs({str(folder)!r}) draws it.")
    with open_npz(path) as file:
        return {name: file[name] for name in ("images", "labels", "groups", "characters")}


def _standardised(upright: dict[Face, np.ndarray]) -> np.ndarray:
    """The pictures as float32 (faces, characters, pixels), each with mean 0 and norm 1."""
    flat = np.stack([images.reshape(len(images), -1).astype(np.float32) for images in upright.values()])
    flat -= flat.mean(2, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=2, keepdims=True), 1e-9)
    return flat


def _unlike(upright: dict[Face, np.ndarray]) -> dict[Face, str]:
    """Faces whose pictures are unlike those of all other faces, such as pictures of animals in the place of letters."""
    if len(upright) < 10:
        return {}
    flat = _standardised(upright)
    usual = flat.mean(0)
    usual /= np.maximum(np.linalg.norm(usual, axis=1, keepdims=True), 1e-9)
    likeness = (flat * usual).sum(2).mean(1)
    return {
        face: f"its characters are unlike those of other fonts (correlation {value:.2f})"
        for face, value in zip(upright, likeness, strict=True)
        if value < LEAST_LIKENESS
    }


def _copies(upright: dict[Face, np.ndarray]) -> dict[Face, str]:
    """Faces that draw every character as an earlier face does."""
    seen: dict[bytes, Face] = {}
    found = {}
    for face, images in upright.items():
        first = seen.setdefault(images.tobytes(), face)
        if first is not face:
            found[face] = f"the same pictures as {first.family} {first.style}"
    return found


def _groups(upright: dict[Face, np.ndarray]) -> dict[Face, str]:
    """A group for each face: equal for families that share their first word or a design."""
    words = [face.family.replace("-", " ").split()[0].lower() for face in upright]
    # OCRACondensed is a style of OCRA.
    leader = {
        word: min((start for start in words if len(start) > 3 and word.startswith(start)), key=len, default=word)
        for word in words
    }

    def root(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    if upright:
        flat = _standardised(upright)
        alike = np.tensordot(flat, flat, ((1, 2), (1, 2))) / flat.shape[1]
        for i, j in np.argwhere(np.triu(alike > SAME_DESIGN, 1)):
            first, second = sorted((root(words[i]), root(words[j])))
            leader[second] = first
    return {face: root(word) for face, word in zip(upright, words, strict=True)}


def _tested(groups: dict[Face, str], seed: int) -> set[str]:
    """Groups for the test part: in random order until they have a quarter of the faces, and never all."""
    names = sorted(set(groups.values()))
    sizes = {name: sum(group == name for group in groups.values()) for name in names}
    chosen: set[str] = set()
    for number in np.random.default_rng(seed).permutation(len(names)):
        name = names[number]
        together = sum(sizes[other] for other in chosen) + sizes[name]
        # One large family must not take most of the faces out of the training part.
        if together <= 1.2 * TEST_SHARE * len(groups) or (not chosen and len(names) == 2):
            chosen.add(name)
    return chosen or {min(names, key=lambda name: sizes[name])}


def _sheet(images: np.ndarray, labels: np.ndarray, classes: int) -> Any:
    """Write a sheet with a column for each character, and faces in the rows."""
    rows = []
    every = [np.flatnonzero(labels == label) for label in range(classes)]
    for place in np.linspace(0, len(every[0]) - 1, min(24, len(every[0]))).round().astype(int):
        rows.append(np.concatenate([images[members[place]] for members in every], axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    return lambda file: sheet.save(file, format="PNG")
