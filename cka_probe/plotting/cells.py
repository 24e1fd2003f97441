"""What is drawn on top of a heatmap's colours: hatches, numbers, significance marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.colors import to_rgba_array
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

READABLE = 5.5  # points; smaller numbers are not written
CHARACTER = 0.62  # width of a digit over the font size


def rectangles(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """The marked cells as few rectangles: (row, column, height, width).

    A dead layer becomes one rectangle instead of one for each cell, which keeps vector files small.

    Parameters
    ----------
    mask : bool array (R, C)
        True where a cell is marked.

    Examples
    --------
    >>> rectangles(np.array([[False, True], [False, True]]))
    [(0, 1, 2, 1)]
    """
    left = mask.copy()
    found = []
    while left.any():
        row, column = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
        width = int(np.argmin(np.append(left[row, column:], False)))
        height = int(np.argmin(np.append(left[row:, column : column + width].all(axis=1), False)))
        tall = int(np.argmin(np.append(left[row:, column], False)))
        if tall > height * width:  # a dead column that crosses a dead row
            height, width = tall, 1
        left[row : row + height, column : column + width] = False
        found.append((row, column, height, width))
    return found


def hatch_cells(ax: Axes, mask: NDArray[np.bool_], hatch: str = "////", **kwargs: Any) -> PatchCollection | None:
    """The hatched patches over the marked cells, or None where none is marked.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        With the cells at integer positions.
    mask : bool array (R, C)
        True where a cell is marked.
    hatch : str
        Matplotlib's hatch pattern.
    **kwargs
        To matplotlib's PatchCollection; white cells with grey lines by default.
    """
    if not mask.any():
        return None
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.55", "linewidth": 0.0, "zorder": 1.5} | kwargs
    patches = [Rectangle((c - 0.5, r - 0.5), w, h) for r, c, h, w in rectangles(mask)]
    collection = PatchCollection(patches, hatch=hatch, **style)
    ax.add_collection(collection, autolim=False)
    return collection


def ink(image: AxesImage) -> NDArray[np.str_]:
    """Black or white for each cell, whichever reads better on its colour.

    Parameters
    ----------
    image : matplotlib.image.AxesImage
        The drawn colours.

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
    """Width and height of a cell in points, as it is drawn now."""
    box = ax.get_window_extent()
    points = 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return float(box.width) * points / max(shape[1], 1), float(box.height) * points / max(shape[0], 1)


def annotate_cells(ax: Axes, image: AxesImage, texts: Sequence[Sequence[str]], *, force: bool = False) -> list[Text]:
    """The texts written into the cells; an empty list where they do not fit.

    Parameters
    ----------
    ax, image
        The axes and the drawn colours.
    texts : sequence (R, C) of str
        What to write; an empty string writes nothing.
    force : bool
        Write even where it does not fit.
    """
    shape = (len(texts), len(texts[0]) if texts else 0)
    lines = [cell.split("\n") for row in texts for cell in row if cell]
    if not lines:
        return []
    longest = max(len(line) for cell in lines for line in cell)
    tallest = max(len(cell) for cell in lines)
    width, height = cell_size(ax, shape)
    size = min(0.88 * width / (longest * CHARACTER), 0.8 * height / (tallest * 1.2), 9.0)
    if size < READABLE and not force:
        return []
    colours = ink(image)
    return [
        ax.text(c, r, cell, ha="center", va="center", fontsize=max(size, 2.0), color=str(colours[r, c]), clip_on=True)
        for r, row in enumerate(texts)
        for c, cell in enumerate(row)
        if cell
    ]


def mark_cells(
    ax: Axes, image: AxesImage, mask: NDArray[np.bool_], label: str, *, corner: bool
) -> PathCollection | None:
    """Small crosses on the marked cells, or None where none is marked.

    Parameters
    ----------
    ax, image
        The axes and the drawn colours.
    mask : bool array (R, C)
        True where a cell is marked.
    label : str
        What the cross means, for a legend.
    corner : bool
        Into the corner of the cell, where a number fills its middle.
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
