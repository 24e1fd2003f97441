"""Hatches, numbers and significance marks on the cells of a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from .labels import root_figure
from .style import SMALLEST

__all__ = [
    "CHARACTER",
    "READABLE",
    "CellText",
    "annotate_cells",
    "cell_size",
    "hatch_cells",
    "ink",
    "mark_cells",
    "may_be_readable",
    "rectangles",
]

READABLE = SMALLEST
"""Font size in points; smaller numbers are not written."""
MOST_HATCHED = 20_000  # marked cells outside of rows and columns that are marked as a whole
MOST_PIECES = 1_000  # crossings of whole rows and columns
CHARACTER = 0.62  # width of a digit divided by the font size


def rectangles(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Rectangles (row, column, height, width) that together cover exactly the marked cells, and rarely overlap.

    A layer whose cells are all undefined becomes one rectangle, not one for each cell, so vector files stay small.

    Parameters
    ----------
    mask : bool array (R, C)
        True where a cell is marked.

    Examples
    --------
    >>> rectangles(np.array([[False, True], [False, True]]))
    [(0, 1, 2, 1)]
    """
    found = []
    left = mask.copy()
    whole_rows, whole_columns = _runs(np.all(mask, axis=1)), _runs(np.all(mask, axis=0))
    if len(whole_rows) * len(whole_columns) > MOST_PIECES:
        # These cross. Cut at the crossings they would be thousands of pieces, which take a minute to draw.
        found += [(start, 0, count, mask.shape[1]) for start, count in whole_rows]
        found += [(0, start, mask.shape[0], count) for start, count in whole_columns]
        for r, c, h, w in found:
            left[r : r + h, c : c + w] = False
    while left.any():
        row, column = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
        width = int(np.argmin(np.append(left[row, column:], False)))
        height = int(np.argmin(np.append(left[row:, column : column + width].all(axis=1), False)))
        tall = int(np.argmin(np.append(left[row:, column], False)))
        if tall > height * width:  # an undefined column that crosses an undefined row
            height, width = tall, 1
        left[row : row + height, column : column + width] = False
        found.append((row, column, height, width))
    return found


def _runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and length of each run of marked places."""
    steps = np.diff(np.concatenate([[0], marked.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [(int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)]


def hatch_cells(ax: Axes, mask: NDArray[np.bool_], hatch: str = "////", **kwargs: Any) -> PatchCollection | None:
    """Draw hatched patches over the marked cells, or grey if thousands of single cells are marked.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes with the cells at integer positions.
    mask : bool array (R, C)
        True where a cell is marked.
    hatch : str
        Matplotlib's hatch pattern.
    **kwargs
        Passed to matplotlib's PatchCollection. By default the cells are white with grey lines.
    """
    if not mask.any():
        return None
    if np.count_nonzero(mask[np.ix_(~mask.all(axis=1), ~mask.all(axis=0))]) > MOST_HATCHED:
        # So many single cells are smaller than the lines of a hatch, and would take minutes to draw.
        grey: dict[str, Any] = {"cmap": ListedColormap(["0.85"]), "origin": "lower", "interpolation": "nearest"}
        ax.imshow(np.ma.masked_array(np.zeros(mask.shape), ~mask), aspect=ax.get_aspect(), zorder=1.5, **grey)
        return None
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.55", "linewidth": 0.0, "zorder": 1.5} | kwargs
    patches = [Rectangle((c - 0.5, r - 0.5), w, h) for r, c, h, w in rectangles(mask)]
    collection = PatchCollection(patches, hatch=hatch, **style)
    ax.add_collection(collection, autolim=False)
    return collection


def ink(image: AxesImage) -> NDArray[np.str_]:
    """Text colour of each cell: black or white, the one with more contrast to the cell.

    Parameters
    ----------
    image : matplotlib.image.AxesImage
        Image of the cells.

    Returns
    -------
    array of str (R, C)
        ``"black"`` or ``"white"``.
    """
    array = image.get_array()
    assert array is not None
    rgb = to_rgba_array(image.to_rgba(array).reshape(-1, 4))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    # Contrast with black (l + 0.05) / 0.05 against contrast with white 1.05 / (l + 0.05): equal at l = 0.179 (WCAG 2).
    return np.where(luminance > 0.179, "black", "white").reshape(array.shape)


def cell_size(ax: Axes, shape: tuple[int, int]) -> tuple[float, float]:
    """Width and height of a cell in points, at the current size of the axes."""
    box = ax.get_window_extent()
    points = 72 / root_figure(ax).dpi
    return float(box.width) * points / max(shape[1], 1), float(box.height) * points / max(shape[0], 1)


def may_be_readable(ax: Axes, shape: tuple[int, int]) -> bool:
    """Whether a number of four characters, the shortest, is large enough to be kept; numbers of all cells take time."""
    width, _ = cell_size(ax, shape)
    return 0.88 * width / (4 * CHARACTER) >= 0.8 * READABLE


class CellText(Text):
    """A number in a cell. Its font size is chosen at each drawing; a number too small to read is not drawn.

    Cells change their size after the number is written: by the layout, by later panels, by resizing the window.

    Parameters
    ----------
    shape : (rows, columns)
        Shape of the matrix that fills the axes.
    letters, lines : int
        Characters in the longest line and number of lines, over all cells of the heatmap.
    force : bool
        Draw the number even if it does not fit.
    *args, **kwargs
        Passed to :class:`matplotlib.text.Text`.
    """

    def __init__(
        self, *args: Any, shape: tuple[int, int], letters: int, lines: int, force: bool, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.shape = shape
        self.letters = letters
        self.lines = lines
        self.force = force

    def fitting_size(self) -> float:
        """Font size in points at which the longest text fits its cell."""
        assert isinstance(self.axes, Axes)
        width, height = cell_size(self.axes, self.shape)
        return min(0.88 * width / (self.letters * CHARACTER), 0.8 * height / (self.lines * 1.2), 9.0)

    def draw(self, renderer: Any) -> None:
        """Draw the number in the size that fits, if that size can be read."""
        size = self.fitting_size()
        if size >= READABLE or self.force:
            self.set_fontsize(max(size, 2.0))
            super().draw(renderer)


def annotate_cells(ax: Axes, image: AxesImage, texts: Sequence[Sequence[str]], *, force: bool = False) -> list[Text]:
    """Write texts into the cells; return the texts, or an empty list if they are far too small to read.

    Parameters
    ----------
    ax, image
        Axes of the heatmap and its image.
    texts : sequence (R, C) of str
        Text of each cell; an empty string writes nothing.
    force : bool
        Write texts even if they do not fit.
    """
    shape = (len(texts), len(texts[0]) if texts else 0)
    split = [cell.split("\n") for row in texts for cell in row if cell]
    letters = max((len(line) for cell in split for line in cell), default=0)
    lines = max(map(len, split), default=0)
    colours = ink(image)
    written: list[Text] = []
    for r, row in enumerate(texts):
        for c, cell in enumerate(row):
            if not cell:
                continue
            style = {"ha": "center", "va": "center", "color": str(colours[r, c]), "clip_on": True}
            text = CellText(c, r, cell, shape=shape, letters=letters, lines=lines, force=force, **style)
            # The layout must not depend on numbers whose size depends on the layout.
            text.set_in_layout(False)
            text.set_transform(ax.transData)
            ax.add_artist(text)
            # Texts this small will never be drawn; 10,000 of them would make the file large and the drawing slow.
            if not written and text.fitting_size() < 0.8 * READABLE and not force:
                text.remove()
                return []
            written.append(text)
    return written


def mark_cells(
    ax: Axes, image: AxesImage, mask: NDArray[np.bool_], label: str, *, corner: bool
) -> PathCollection | None:
    """Draw small crosses on the marked cells; return None if no cell is marked.

    Parameters
    ----------
    ax, image
        Axes of the heatmap and its image.
    mask : bool array (R, C)
        True where a cell is marked.
    label : str
        Meaning of the cross, for a legend.
    corner : bool
        Draw the cross in the corner of the cell, because a number is in the middle.
    """
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    side = min(cell_size(ax, mask.shape))
    marker = max(min(side * (0.2 if corner else 0.45), 6.0), 0.8)
    shift = 0.36 if corner else 0.0
    colours = ink(image)[rows, columns]
    return ax.scatter(
        columns + shift,
        rows + shift,
        s=marker**2,
        marker="x",
        c=list(colours),
        linewidths=marker / 6 + 0.2,
        label=label,
    )
