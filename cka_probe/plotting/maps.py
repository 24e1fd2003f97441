"""Maps of models: each model is a point, near to the models that see the data alike; and their tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from ..capture.extras import require
from ..capture.nearest import nearest_hint
from ..similarity.matrix import SimilarityMatrix
from .canvas import MARKERS, PALETTE, new_axes
from .style import PAGE, house_style, in_house_style
from .text import as_shown

if TYPE_CHECKING:
    from seaborn.matrix import ClusterGrid

__all__ = ["map_positions", "plot_dendrogram", "plot_map"]

GROUPS = 8
"""Different values up to which numbers are groups of their own colour; more are drawn on a scale."""


def map_positions(
    distances: SimilarityMatrix | ArrayLike, *, method: str = "mds", seed: int = 0
) -> tuple[NDArray[np.float64], float]:
    """Positions of models in a plane whose distances are as near as possible to the given ones.

    Parameters
    ----------
    distances : SimilarityMatrix or array (n, n)
        Distances, for example ``Atlas.distances()``.
    method : "mds" or "umap"
        "mds" is metric multidimensional scaling (SMACOF of scikit-learn, from the classical solution): distances in the
        plane are to be read as distances. "umap" keeps neighbours together, and distances between groups mean little;
        it needs the extra ``umap``.
    seed : int
        Of "umap".

    Returns
    -------
    positions : array (n, 2)
        Mean 0, the longer axis first.
    stress : float
        Root of the sum of squared errors of the distances, divided by that of the squared distances: 0 is exact, above
        about 0.2 a plane is too small for them.

    Raises
    ------
    ValueError
        If the distances are not square, symmetric and finite, or of fewer than 3 models, or the method is unknown.
    ModuleNotFoundError
        If the library is not installed.

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    >>> positions, stress = map_positions(np.linalg.norm(x[:, None] - x, axis=-1))
    >>> round(stress, 6)
    0.0
    """
    if method not in ("mds", "umap"):
        raise ValueError(f"There is no method {method!r}. {nearest_hint(str(method), ('mds', 'umap'), kind='Methods')}")
    d, _ = _checked(distances)
    if method == "umap":
        require("umap", "umap", 'A map with method="umap"')
        import umap

        found = umap.UMAP(metric="precomputed", n_neighbors=min(15, len(d) - 1), random_state=seed).fit_transform(d)
    else:
        require("sklearn", "atlas", "A map")
        from sklearn.manifold import smacof

        start = _classical(d)
        found = smacof(d, n_components=2, init=start, n_init=1, max_iter=1000, eps=1e-9, normalized_stress=False)[0]
    found = found - found.mean(axis=0)
    found = found @ np.linalg.svd(found, full_matrices=False)[2].T
    flat = np.linalg.norm(found[:, None] - found, axis=-1)
    return found, float(np.sqrt(((flat - d) ** 2).sum() / max((d**2).sum(), 1e-300)))


@in_house_style
def plot_map(
    distances: SimilarityMatrix | ArrayLike,
    *,
    colour: Sequence[Any] | None = None,
    marker: Sequence[Any] | None = None,
    paths: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] | None = None,
    colour_label: str | None = None,
    marker_label: str | None = None,
    method: str = "mds",
    seed: int = 0,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw models as points of a plane: near points see the data alike.

    Parameters
    ----------
    distances : SimilarityMatrix or array (n, n)
        Distances between models, for example ``Atlas.distances()``.
    colour : sequence of n, optional
        A property of each model. Texts, and numbers of up to 8 different values, have a legend; more numbers a scale.
    marker : sequence of n, optional
        Another property, of at most 8 different values, drawn by the shape of the points.
    paths : sequence of sequences of int, optional
        Places of models that are joined by a line with an arrow, in this order: the checkpoints of a training run.
    names : sequence of n texts, optional
        Written beside the points.
    colour_label, marker_label : str, optional
        Names of the properties.
    method, seed
        As ``map_positions``.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.scatter`.

    Returns
    -------
    matplotlib.axes.Axes
        With the stress of "mds" below: how far distances in the plane are from the true ones.

    Raises
    ------
    ValueError
        As ``map_positions``; or if a sequence has another length, ``marker`` has too many values, or a path leaves the
        map.
    ModuleNotFoundError
        If a library is not installed.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(9, 2))
    >>> ax = plot_map(np.linalg.norm(x[:, None] - x, axis=-1), colour=list("aabbccaab"))
    >>> len(ax.get_legend().get_texts())
    3
    """
    positions, stress = map_positions(distances, method=method, seed=seed)
    count = len(positions)
    for name, given in (("colour", colour), ("marker", marker), ("names", names)):
        if given is not None and len(given) != count:
            raise ValueError(f"`{name}` has {len(given)} values for {count} models.")
    shapes = [str(value) for value in (marker if marker is not None else [""] * count)]
    kinds = _ordered(marker if marker is not None else [""])
    if len(kinds) > len(MARKERS):
        raise ValueError(f"`marker` has {len(kinds)} different values; at most {len(MARKERS)} can be told apart.")
    if ax is None:
        ax = new_axes((PAGE, 0.6 * PAGE))
    for path in paths or ():
        _draw_path(ax, positions, path)
    options: dict[str, Any] = {"s": 22, "linewidths": 0.4, "edgecolors": "white", "zorder": 3, **kwargs}
    groups = None if colour is None else _ordered(colour)
    scale = colour is not None and groups is not None and len(groups) > GROUPS and _numeric(colour)
    if groups is not None and len(groups) > len(PALETTE) and not scale:
        raise ValueError(f"`colour` has {len(groups)} different texts; at most {len(PALETTE)} can be told apart.")
    drawn = None
    for shape, sign in zip(kinds, MARKERS, strict=False):
        own = [i for i in range(count) if shapes[i] == shape]
        if scale and colour is not None:
            numbers = np.asarray(colour, dtype=np.float64)
            limits = {"vmin": numbers.min(), "vmax": numbers.max(), "cmap": "viridis"}
            x, y = positions[own].T
            drawn = ax.scatter(x, y, c=numbers[own], marker=sign, **{**limits, **options})
        else:
            shade = [PALETTE[0 if groups is None or colour is None else groups.index(str(colour[i]))] for i in own]
            x, y = positions[own].T
            ax.scatter(x, y, c=shade, marker=sign, **options)
    if drawn is not None:
        ax.figure.colorbar(drawn, ax=ax, label=colour_label or "")
    _legends(ax, None if scale else groups, colour_label, kinds if marker is not None else None, marker_label)
    for i, text in enumerate(names or ()):
        ax.annotate(as_shown(text), positions[i], xytext=(3, 3), textcoords="offset points", size="small")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    note = f"stress {stress:.2f}" if method == "mds" else "UMAP: only neighbours can be read"
    ax.set_xlabel(note)
    return ax


def plot_dendrogram(
    distances: SimilarityMatrix | ArrayLike, *, colour: Sequence[Any] | None = None, **kwargs: Any
) -> ClusterGrid:
    """Draw the tree of models by their distances, beside the matrix in the order of the tree.

    Parameters
    ----------
    distances : SimilarityMatrix or array (n, n)
        Distances between models, for example ``Atlas.distances()``.
    colour : sequence of n, optional
        A property of each model of at most 8 different values, drawn as a strip beside the matrix.
    **kwargs
        Passed to :func:`seaborn.clustermap`.

    Returns
    -------
    seaborn.matrix.ClusterGrid
        Average linkage. ``.figure`` is the figure, ``.dendrogram_row.reordered_ind`` the order of the models.

    Raises
    ------
    ValueError
        If the distances are not square, symmetric and finite, or of fewer than 3 models, or ``colour`` has another
        length or too many values.

    Examples
    --------
    >>> x = np.array([[0.0], [9.0], [0.1], [9.1]])
    >>> grid = plot_dendrogram(abs(x - x.T))
    >>> order = list(grid.dendrogram_row.reordered_ind)
    >>> abs(order.index(0) - order.index(2)), abs(order.index(1) - order.index(3))
    (1, 1)
    """
    import pandas as pd
    import seaborn as sns
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    d, names = _checked(distances)
    tree = linkage(squareform(d, checks=False), method="average")
    options: dict[str, Any] = {
        "row_linkage": tree,
        "col_linkage": tree,
        "cmap": "viridis_r",
        "figsize": (PAGE, PAGE),
        "xticklabels": False,
        "yticklabels": len(d) <= 60,
        "cbar_kws": {"label": "distance (radians)"},
    }
    groups: list[str] = []
    if colour is not None:
        if len(colour) != len(d):
            raise ValueError(f"`colour` has {len(colour)} values for {len(d)} models.")
        groups = _ordered(colour)
        if len(groups) > len(PALETTE):
            raise ValueError(f"`colour` has {len(groups)} values; at most {len(PALETTE)} colours can be told apart.")
        options["row_colors"] = [PALETTE[groups.index(str(value))] for value in colour]
    with house_style():
        grid = sns.clustermap(pd.DataFrame(d, index=names, columns=names), **{**options, **kwargs})
        if groups:
            signs = [mpl.patches.Patch(color=shade) for shade in PALETTE[: len(groups)]]
            grid.figure.legend(signs, [as_shown(g) for g in groups], loc="upper right", frameon=False)
    return grid


def _checked(distances: SimilarityMatrix | ArrayLike) -> tuple[NDArray[np.float64], list[str]]:
    """The distances and the names of the models."""
    d = np.asarray(distances, dtype=np.float64)
    names = [as_shown(n) for n in distances.rows] if isinstance(distances, SimilarityMatrix) else None
    if isinstance(distances, SimilarityMatrix) and not distances.is_distance:
        raise ValueError(
            f"`distances` holds the similarity {distances.measure!r}, not distances. Take `Atlas.distances()`."
        )
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) < 3:
        raise ValueError(f"`distances` must be a square matrix of at least 3 models, got the shape {d.shape}.")
    if not np.isfinite(d).all():
        lost = np.flatnonzero(np.isnan(d).all(axis=1)).tolist()
        raise ValueError(f"`distances` holds NaN or infinity (models {lost}). Leave these models out.")
    if not np.allclose(d, d.T) or (d < 0).any() or np.diag(d).any():
        raise ValueError("`distances` must be symmetric, at least 0, and 0 on the diagonal.")
    return d, names if names is not None else [str(i) for i in range(len(d))]


def _classical(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Classical scaling: the two largest axes of the doubly centred squared distances."""
    squares = -(d**2) / 2
    gram = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 1e-12))


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values)


def _ordered(values: Sequence[Any]) -> list[str]:
    """Different values as texts: numbers by size, others by first appearance."""
    different = list(dict.fromkeys(values))
    return [str(value) for value in (sorted(different) if _numeric(different) else different)]


def _draw_path(ax: Axes, positions: NDArray[np.float64], path: Sequence[int]) -> None:
    if any(not 0 <= place < len(positions) for place in path):
        raise ValueError(f"A path holds places from 0 to {len(positions) - 1}, got {list(path)}.")
    line = positions[list(path)]
    ax.plot(*line.T, color="0.6", linewidth=0.8, zorder=1)
    if len(line) > 1:
        ax.annotate("", line[-1], line[-2], arrowprops={"arrowstyle": "->", "color": "0.6", "linewidth": 0.8}, zorder=2)


def _legends(
    ax: Axes, groups: list[str] | None, colour_label: str | None, kinds: list[str] | None, marker_label: str | None
) -> None:
    """One legend right of the axes: first the colours, then the shapes, each under its name."""
    line = mpl.lines.Line2D
    entries: list[tuple[Any, str]] = []
    for title, values in ((colour_label, groups), (marker_label, kinds)):
        if not values:
            continue
        if title:
            entries.append((line([], [], linestyle=""), as_shown(title)))
        for i, value in enumerate(values):
            shade, sign = (PALETTE[i], "o") if values is groups else ("0.3", MARKERS[i])
            entries.append((line([], [], linestyle="", marker=sign, color=shade), as_shown(value)))
    if entries:
        handles, texts = zip(*entries, strict=True)
        ax.legend(handles, texts, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
