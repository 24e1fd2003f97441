"""Faces of fonts: find them, leave out those that cannot draw the wanted characters, and draw one character."""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Face", "draw", "faces_of", "font_files", "problem_of"]

SUFFIXES = {".ttf", ".otf", ".ttc", ".otc", ".pfb", ".pfa"}

# Drawn this many times larger than the picture, so that turning and shrinking leave smooth edges.
OVERSAMPLING = 4
# Height of a capital H over the height of the picture, and the row of the baseline.
CAPITAL, BASELINE = 0.56, 0.74

# A character that no font has: its picture is that of a missing character.
MISSING = "\U0010fffe"

# Fonts of signs, of mathematics, of drop capitals and of pictures of letters map letters to something else.
SIGNS = (
    "symbol",
    "dingbat",
    "icon",
    "emoji",
    "braille",
    "barcode",
    "math",
    "integral",
    "variants",
    "d050000l",
    "initials",
)


class Face(NamedTuple):
    """One face: a file, its number in the file, and the names of family and style that stand in it."""

    file: Path
    number: int
    family: str
    style: str


def font_files(folders: Sequence[str | Path] | None = None) -> list[Path]:
    """The font files of some folders, with their subfolders; without folders those that fontconfig knows.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or holds no fonts, or fontconfig is not installed or knows none.
    """
    if folders is None:
        program = shutil.which("fc-list")
        if program is None:
            raise FileNotFoundError(
                "fontconfig is not installed, so the fonts of this machine are unknown. Run "
                "`apt-get install fontconfig`, or name the folders of the fonts: make_glyphs(folder, fonts=[...])."
            )
        listed = subprocess.run([program, "--format", "%{file}\n"], capture_output=True, text=True, check=True)
        found = {Path(line) for line in listed.stdout.splitlines() if Path(line).suffix.lower() in SUFFIXES}
        if not found:
            raise FileNotFoundError("fontconfig knows no fonts. Install some, for example fonts-dejavu and fonts-lato.")
        return sorted(found)
    found = set()
    for folder in map(Path, folders):
        inside = {path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()}
        if not inside:
            what = "holds no font files" if folder.is_dir() else "does not exist"
            raise FileNotFoundError(f"The folder of fonts {str(folder)!r} {what} ({', '.join(sorted(SUFFIXES))}).")
        found |= inside
    return sorted(found)


def faces_of(files: Iterable[Path]) -> Iterator[Face]:
    """The faces in font files, in their order. A file that is no font has none."""
    for file in files:
        for number in range(100):
            try:
                family, style = ImageFont.truetype(str(file), 20, index=number).getname()
            except (OSError, ValueError):
                break
            yield Face(file, number, family or file.stem, style or "")
            if file.suffix.lower() not in (".ttc", ".otc"):
                break


def problem_of(face: Face, characters: str) -> str | None:
    """Why a face is of no use for pictures of these characters; None if it is."""
    if any(sign in face.family.lower() for sign in SIGNS):
        return "a font of signs"
    try:
        font = _font(face.file, face.number, 64)
        missing = _picture(font, MISSING)
        seen = {character: _picture(font, character) for character in characters}
    except (OSError, ValueError) as error:
        return f"it cannot be drawn: {error}"
    for character, picture in seen.items():
        if picture is None or picture == missing:
            return f"it lacks {character!r}"
    # Letters that are not alike in any alphabet of both cases. In a font of capitals alone the label would be a guess.
    pairs = [(letter, letter.upper()) for letter in "abdeghnqrt" if {letter, letter.upper()} <= set(characters)]
    if len(pairs) > 3 and sum(seen[small] == seen[capital] for small, capital in pairs) > len(pairs) / 2:
        return "its small letters are its capitals"
    if len(set(seen.values())) < 0.9 * len(seen):
        return "many of its characters look the same"
    return None


def _picture(font: ImageFont.FreeTypeFont, character: str) -> bytes | None:
    """A character as bytes; None if nothing is drawn."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    size = f"{image.size}".encode()
    return size + image.tobytes() if image.getbbox() else None


@lru_cache(maxsize=64)  # reading a file takes longer than drawing, and most characters of a face have one size
def _font(file: Path, number: int, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), points, index=number)


def draw(face: Face, character: str, size: int, seed: int | None, variant: int = 0) -> np.ndarray:
    """A character of a face, white on black, uint8 (size, size).

    A capital is 0.56 of the picture high, and all characters of a face stand on one line, so that c and C differ. What
    is too wide is made smaller. With a seed the picture is turned by up to 8 degrees, moved by up to 1/16 of its size
    and scaled by up to a tenth; the change depends on the seed, the face, the character and the variant alone.
    """
    large = OVERSAMPLING * size
    probe = _font(face.file, face.number, 100)
    box = probe.getbbox("H", anchor="ls")
    points = 100 * CAPITAL * large / max(1, -box[1])
    left, top, right, bottom = probe.getbbox(character, anchor="ls")
    scale = points / 100
    room = 0.92 * large
    scale *= min(1.0, room / max(1, scale * (right - left)), room / max(1, scale * (bottom - top)))
    font = _font(face.file, face.number, max(1, round(100 * scale)))
    left, top, right, bottom = font.getbbox(character, anchor="ls")
    line = BASELINE * large
    line = min(line, large - 0.04 * large - bottom)  # a long tail
    line = max(line, 0.04 * large - top)  # a high head
    image = Image.new("L", (large, large))
    ImageDraw.Draw(image).text(((large - right - left) / 2, line), character, fill=255, font=font, anchor="ls")
    if seed is not None:
        name = f"{seed}/{face.family}/{face.style}/{face.file.name}/{face.number}/{character}/{variant}"
        random = np.random.default_rng(list(hashlib.blake2b(name.encode(), digest_size=16).digest()))
        angle = math.radians(random.uniform(-8, 8))
        zoom = 1 / random.uniform(0.9, 1.1)
        dx, dy = random.uniform(-large / 16, large / 16, 2)
        a, b = zoom * math.cos(angle), zoom * math.sin(angle)
        middle = large / 2
        # Where each pixel of the new picture comes from.
        x, y = middle + dx, middle + dy
        matrix = (a, b, middle - a * x - b * y, -b, a, middle + b * x - a * y)
        image = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))
