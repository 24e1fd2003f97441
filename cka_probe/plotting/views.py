"""What part of a matrix a heatmap shows, and how: chosen layers, names of one's own, one half, the best matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ..capture.nearest import nearest_hint
from ..similarity.matrix import SimilarityMatrix
from ..similarity.selection import changed
from ..similarity.tables import best_columns
from .cells import cell_size, ink

__all__ = ["View", "hidden_cells", "mark_best"]

HALVES = ("upper", "lower")
FRAMED = 8.0
"""Points of the side of the smallest cell that gets a frame."""


class View(NamedTuple):
    """The layers that are drawn, their order and their names; see :func:`plot_heatmap`."""

    rows: Any = None
    columns: Any = None
    labels: Mapping[str, str] | Callable[[str], str] | None = None

    @classmethod
    def taken(cls, kwargs: dict[str, Any]) -> View:
        """Remove the options of a view from `kwargs` and return them.

        Parameters
        ----------
        kwargs : dict
            Keywords of a plotting function.
        """
        return cls(**{name: kwargs.pop(name) for name in cls._fields if name in kwargs})

    def of(self, matrix: SimilarityMatrix) -> SimilarityMatrix:
        """The part of the matrix, with its names.

        Parameters
        ----------
        matrix : SimilarityMatrix
            The whole matrix.

        Raises
        ------
        TypeError
            If `labels` is neither a mapping nor a function, or a name is not a string.
        ValueError
            If a layer does not exist.
        """
        if self.rows is not None or self.columns is not None:
            matrix = matrix.select(rows=self.rows, columns=self.columns)
        if self.labels is None:
            return matrix
        if isinstance(self.labels, Mapping):
            given = self.labels
            known = dict.fromkeys((*matrix.rows, *matrix.columns))
            for name in given:
                if name not in known:
                    raise ValueError(f"`labels` names {name!r}. {nearest_hint(str(name), known, kind='The layers')}")
            fresh = [[given.get(name, name) for name in side] for side in (matrix.rows, matrix.columns)]
        elif callable(self.labels):
            fresh = [[self.labels(name) for name in side] for side in (matrix.rows, matrix.columns)]
        else:
            raise TypeError(
                f"`labels` must be a mapping of layers to names, or a function, got {type(self.labels).__name__}."
            )
        for name in (*fresh[0], *fresh[1]):
            if not isinstance(name, str):
                raise TypeError(f"A name in `labels` must be a string, got {name!r} of type {type(name).__name__}.")
        return changed(matrix, rows=fresh[0], columns=fresh[1])


def hidden_cells(matrix: SimilarityMatrix, mask: Any) -> NDArray[np.bool_]:
    """True for each cell that is not drawn.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix that is drawn.
    mask : None, "upper", "lower" or bool array (R, C)
        "upper" hides the cells above the diagonal as it is drawn, from the lower left to the upper right.

    Raises
    ------
    ValueError
        If `mask` has another value or shape, or hides a half that the other half does not repeat.
    """
    if mask is None:
        return np.zeros(matrix.shape, dtype=bool)
    if not isinstance(mask, str):
        array = np.asarray(mask)
        if array.dtype != bool or array.shape != matrix.shape:
            raise ValueError(
                f"`mask` must be 'upper', 'lower' or a bool array of shape {matrix.shape} (True is hidden), "
                f"got {array.dtype} of shape {array.shape}."
            )
        return array
    if mask not in HALVES:
        raise ValueError(f"`mask` must be 'upper', 'lower', a bool array or None, got {mask!r}.")
    values = matrix.values
    if matrix.row_labels != matrix.column_labels or not np.allclose(values, values.T, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"`mask={mask!r}` hides one half of a symmetric matrix. This one is not symmetric, so each half has values "
            "of its own. Leave `mask` out."
        )
    # Rows go upwards, so a row above the diagonal has the larger index.
    above = np.tri(len(values), k=-1, dtype=bool)
    return above if mask == "upper" else above.T


def mark_best(ax: Axes, image: AxesImage, matrix: SimilarityMatrix) -> str:
    """Frame the most similar column of each row; cells too small for a frame get a dot.

    Parameters
    ----------
    ax, image
        Axes of the heatmap and its image.
    matrix : SimilarityMatrix
        The matrix. If it compares the same layers, a layer is not its own best match.

    Returns
    -------
    str
        "framed" or "dots".
    """
    best, _ = best_columns(matrix, itself=False)
    rows = np.flatnonzero(best >= 0)
    columns = best[rows]
    side = min(cell_size(ax, matrix.shape))
    if side >= FRAMED:
        frames = [Rectangle((c - 0.42, r - 0.42), 0.84, 0.84) for r, c in zip(rows, columns, strict=True)]
        colours = list(ink(image)[rows, columns])
        ax.add_collection(PatchCollection(frames, facecolors="none", edgecolors=colours, linewidths=1.0), autolim=False)
        return "framed"
    ax.scatter(columns, rows, s=max(side, 2.5) ** 2, c="white", edgecolors="black", linewidths=0.4)
    return "dots"
