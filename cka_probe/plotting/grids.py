"""Several heatmaps in one figure: on one scale, with their difference, or with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ..similarity.matrix import SimilarityMatrix
from .canvas import BAR, as_similarity, is_square, names_size
from .cells import hatch_cells
from .heatmap import Drawn, HeatmapOptions, draw_heatmap, finish_heatmaps, plot_heatmap
from .scale import colour_scale, measure_label
from .style import PAGE, in_house_style
from .text import LONG, as_shown, set_plain
from .views import View

__all__ = ["plot_before_after", "plot_difference", "plot_heatmap_grid", "plot_heatmap_with_error"]

# Colour-blind readers can tell blue from red. In grey both look the same, so cells below 0 are hatched as well.
DIVERGING = "RdBu_r"


@in_house_style
def plot_heatmap_grid(
    matrices: Mapping[str, Any] | Sequence[Any],
    *,
    axes: NDArray[np.object_] | Sequence[Axes] | None = None,
    columns: int | None = None,
    limits: Any = "auto",
    vmin: float | None = None,
    vmax: float | None = None,
    **kwargs: Any,
) -> NDArray[np.object_]:
    """Draw heatmaps that share one colour scale, so that equal colours mean equal values.

    Parameters
    ----------
    matrices : dict of title to matrix, or sequence of matrices
        Each a SimilarityMatrix, DataFrame or array (R, C); all of one measure.
    axes : sequence of matplotlib.axes.Axes, optional
        Axes to draw on, one for each matrix; by default those of a new figure.
    columns : int, optional
        Number of heatmaps in a row of the new figure; by default the grid is about square.
    limits : "auto", "full", "data", "chance" or (low, high)
        The common scale, as in :func:`plot_heatmap`, of the values of all matrices.
    vmin, vmax : float, optional
        Ends of the common scale, instead of those of `limits`.
    **kwargs
        Passed to :func:`plot_heatmap`.

    Returns
    -------
    array of matplotlib.axes.Axes
        One for each matrix, in the same order. The last heatmap of each row has the colour bar.

    Raises
    ------
    ValueError
        If there are no matrices, one is empty, their measures differ, `columns` is below 1, `axes` does not hold one
        for each matrix, or an option asks for data that a matrix does not have.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> axes = plot_heatmap_grid({"seed 0": [[1.0, 0.2]], "seed 1": [[0.9, 0.3]]})
    >>> [ax.get_title() for ax in axes]
    ['seed 0', 'seed 1']
    >>> plt.close()
    """
    if isinstance(matrices, Mapping):
        titles: list[str | None] = [str(name) for name in matrices]
        panels = [as_similarity(matrix) for matrix in matrices.values()]
    else:
        panels = [as_similarity(matrix) for matrix in matrices]
        titles = [None] * len(panels)
    if not panels:
        raise ValueError("There is nothing to draw: `matrices` is empty.")
    measures = {panel.measure for panel in panels}
    if len(measures) > 1:
        raise ValueError(
            f"Heatmaps of different measures cannot share one colour scale: {', '.join(sorted(measures))}. "
            "Draw a grid for each measure."
        )
    view, options = View.taken(kwargs), _options(kwargs)
    panels = [view.of(panel) for panel in panels]
    for panel in panels:
        options.check(panel)
    own = axes is None
    if columns is None:
        columns = round(np.sqrt(len(panels)) + 0.4) if own else len(panels)
    flat = _new_grid(panels, columns) if own else _given(axes, len(panels))
    alone = limits == "auto" and not (vmin is None and vmax is None)
    scale = {"limits": colour_scale(panels, "full" if alone else limits), "vmin": vmin, "vmax": vmax}
    drawn = []
    for i, (ax, panel, title) in enumerate(zip(flat, panels, titles, strict=True)):
        last = i % columns == columns - 1 or i == len(panels) - 1
        drawn.append(draw_heatmap(panel, ax, options, **{"colorbar": last} | scale | kwargs))
        if title is not None and "title" not in kwargs:
            set_plain(ax.title, "\n".join(as_shown(line, LONG) for line in title.split("\n")))
    if own:
        _name_once(drawn, columns)
    finish_heatmaps(drawn, trim=own)
    return flat


@in_house_style
def plot_before_after(
    before: Any,
    after: Any,
    *,
    titles: tuple[str, str] = ("before", "after"),
    axes: Sequence[Axes] | None = None,
    **kwargs: Any,
) -> NDArray[np.object_]:
    """Draw student x teacher before and after distillation on one scale, and the difference.

    Parameters
    ----------
    before, after : SimilarityMatrix, DataFrame or array (R, C)
        Two matrices of the same layers in the same order.
    titles : pair of str
        Titles of the first two heatmaps; the title of the third joins them.
    axes : sequence of three matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :func:`plot_heatmap` for the first two.

    Returns
    -------
    array of three matplotlib.axes.Axes
        Before, after, and after minus before.

    Raises
    ------
    ValueError
        If the layers or measures differ, or `axes` does not hold three axes.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> axes = plot_before_after([[0.2, 0.3]], [[0.6, 0.9]])
    >>> axes[2].get_title()
    'after − before'
    >>> plt.close()
    """
    view = View.taken(kwargs)
    before, after = view.of(as_similarity(before)), view.of(as_similarity(after))
    _check_same_layers(after, before)
    change, limit = _change(after, before)
    options = _options(kwargs)
    options.check(before)
    options.check(after)
    flat = _new_grid([before, after, after], 3, bars=2) if axes is None else _given(axes, 3)
    style = {"limits": colour_scale([before, after], kwargs.pop("limits", "auto"))} | kwargs
    # The errors and p-values of the two matrices do not apply to their difference: both saw the same samples.
    plain = options._replace(
        annotate="auto" if options.annotate == "error" else options.annotate, significance=None, best_match=False
    )
    changed: dict[str, Any] = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit, "title": f"{titles[1]} − {titles[0]}"}
    drawn = [
        draw_heatmap(before, flat[0], options, title=titles[0], colorbar=False, **style),
        draw_heatmap(after, flat[1], options, title=titles[1], **style),
        draw_heatmap(change, flat[2], plain, **changed),
    ]
    if axes is None:
        _name_once(drawn, 3)
    finish_heatmaps(drawn, trim=axes is None)
    _hatch_falls(flat[2], change, limit)
    return flat


@in_house_style
def plot_difference(
    matrix: Any,
    reference: Any,
    *,
    ax: Axes | None = None,
    cmap: Any = DIVERGING,
    limit: float | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw `matrix` minus `reference` on a diverging colour scale with 0 in the middle.

    If the cells are too small for numbers, those that fell are hatched, so that a grey print shows the sign.

    Parameters
    ----------
    matrix, reference : SimilarityMatrix, DataFrame or array (R, C)
        Two matrices of the same layers in the same order.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    cmap : str or matplotlib.colors.Colormap
        Diverging colours.
    limit : float, optional
        The scale spans -limit to limit; by default the largest change.
    **kwargs
        Passed to :func:`plot_heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        A cell that is undefined in either matrix is drawn as undefined.

    Raises
    ------
    ValueError
        If the layers or measures differ, or `limit` is not positive.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_difference([[0.5, 0.5]], [[0.1, 0.6]])
    >>> [float(round(end, 3)) for end in ax.images[0].get_clim()]
    [-0.4, 0.4]
    >>> plt.close()
    """
    matrix, reference = as_similarity(matrix), as_similarity(reference)
    _check_same_layers(matrix, reference)
    change, largest = _change(matrix, reference)
    if limit is not None and not limit > 0:
        raise ValueError(f"`limit` must be positive, got {limit}.")
    limit = largest if limit is None else limit
    ax = plot_heatmap(change, ax=ax, cmap=cmap, vmin=-limit, vmax=limit, **kwargs)
    _hatch_falls(ax, change, limit)
    return ax


def _change(matrix: SimilarityMatrix, reference: SimilarityMatrix) -> tuple[SimilarityMatrix, float]:
    """`matrix` minus `reference`, and the largest absolute change (1 if nothing changed)."""
    if matrix.measure != reference.measure:
        raise ValueError(f"A difference of different measures means nothing: {matrix.measure} − {reference.measure}.")
    change = _with_values(matrix, matrix.values - reference.values, f"change of {measure_label(matrix)}")
    largest = float(np.abs(change.values[np.isfinite(change.values)]).max(initial=0))
    return change, largest or 1.0


def _with_values(matrix: SimilarityMatrix, values: NDArray[np.float64], measure: str) -> SimilarityMatrix:
    """A matrix of the same layers and models with other values, without errors and p-values."""
    return SimilarityMatrix(
        values,
        matrix.rows,
        matrix.columns,
        measure=measure,
        meta={key: matrix.meta[key] for key in ("model_x", "model_y") if key in matrix.meta},
        row_models=matrix.row_models,
        column_models=matrix.column_models,
    )


def _hatch_falls(ax: Axes, change: SimilarityMatrix, limit: float) -> None:
    if ax.texts:
        return  # the numbers show their signs
    # Small changes need no mark: their cells are nearly white.
    fell = np.isfinite(change.values) & (change.values < -0.1 * limit)
    hatch_cells(ax, fell, hatch="---", facecolor="none", edgecolor="0.25", alpha=0.5)


@in_house_style
def plot_heatmap_with_error(
    matrix: SimilarityMatrix, *, axes: Sequence[Axes] | None = None, error_cmap: Any = "cividis", **kwargs: Any
) -> NDArray[np.object_]:
    """Draw the heatmap and, beside it, the standard error of each cell.

    Parameters
    ----------
    matrix : SimilarityMatrix
        Matrix with standard errors.
    axes : sequence of two matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    error_cmap : str or matplotlib.colors.Colormap
        Colours of the errors; different from those of the values, so that nobody mixes them up.
    **kwargs
        Passed to :func:`plot_heatmap` for the values.

    Returns
    -------
    array of two matplotlib.axes.Axes
        Values and standard errors; the scale of the errors starts at 0.

    Raises
    ------
    TypeError
        If `matrix` is not a SimilarityMatrix: only that holds standard errors.
    ValueError
        If `matrix` has no standard errors, or `axes` does not hold two axes.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> matrix = SimilarityMatrix([[0.5]], ["a"], ["b"], standard_error=[[0.02]])
    >>> axes = plot_heatmap_with_error(matrix)
    >>> float(axes[1].images[0].get_clim()[1])
    0.02
    >>> plt.close()
    """
    if not isinstance(matrix, SimilarityMatrix):
        raise TypeError(
            f"`matrix` must be a SimilarityMatrix, which holds standard errors; got {type(matrix).__name__}."
        )
    if matrix.standard_error is None:
        raise ValueError("This matrix has no standard error to draw. Use plot_heatmap.")
    matrix, options = View.taken(kwargs).of(matrix), _options(kwargs)
    options.check(matrix)
    assert matrix.standard_error is not None  # a view keeps it
    flat = _new_grid([matrix, matrix], 2, bars=2) if axes is None else _given(axes, 2)
    errors = _with_values(matrix, matrix.standard_error, f"standard error of {measure_label(matrix)}")
    known = matrix.standard_error[np.isfinite(matrix.standard_error)]
    scale: dict[str, Any] = {"cmap": error_cmap, "vmin": 0.0, "vmax": float(known.max(initial=0)) or 1.0}
    # Errors are often a few thousandths: two decimals would not show them, the colours do.
    drawn = [
        draw_heatmap(matrix, flat[0], options, **kwargs),
        draw_heatmap(errors, flat[1], HeatmapOptions(False, options.layer_labels, mask=options.mask), **scale),
    ]
    if axes is None:
        _name_once(drawn, 2)
    finish_heatmaps(drawn, trim=axes is None)
    return flat


def _check_same_layers(matrix: SimilarityMatrix, reference: SimilarityMatrix) -> None:
    for side in ("row_labels", "column_labels"):
        ours, theirs = getattr(matrix, side), getattr(reference, side)
        if ours != theirs:
            name = side.split("_")[0]
            different = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
            detail = (
                f"{len(ours)} and {len(theirs)} of them" if different is None else f"{different[0]} and {different[1]}"
            )
            raise ValueError(
                f"Both matrices must hold the same layers in the same order; their {name}s differ: {detail}."
            )


def _new_grid(panels: Sequence[SimilarityMatrix], columns: int, bars: int = 1) -> NDArray[np.object_]:
    """Axes of a new figure: one for each panel, `columns` in a row, with room for `bars` colour bars in a row."""
    import matplotlib.pyplot as plt

    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    count = len(panels)
    columns = min(columns, count)
    rows = -(-count // columns)
    beside, below = (max(names_size(getattr(p, side)) for p in panels) for side in ("rows", "columns"))
    across, down = (1 if _shared(panels, side) else number for side, number in (("rows", columns), ("columns", rows)))
    width = max((PAGE - across * beside - bars * BAR) / columns, 0.6)
    height = max(width * p.shape[0] / p.shape[1] if is_square(p.shape) else width for p in panels)
    size = (PAGE, min(rows * (height + 0.35) + down * below + 0.1, 9.0))
    _, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    flat = grid.ravel()
    for ax in flat[count:]:
        ax.remove()
    return flat[:count]


def _shared(panels: Sequence[SimilarityMatrix], side: str) -> bool:
    """Whether all panels have the same layers along ``"rows"`` or ``"columns"``, so that they are named once."""
    return len({getattr(panel, side) for panel in panels}) == 1


def _given(axes: Any, count: int) -> NDArray[np.object_]:
    flat = np.array(axes, dtype=object).ravel()
    if len(flat) != count:
        raise ValueError(f"`axes` must hold {count} axes, one for each heatmap; got {len(flat)}.")
    return flat


def _options(kwargs: dict[str, Any]) -> HeatmapOptions:
    """Remove the options of :class:`HeatmapOptions` from `kwargs` and return them."""
    return HeatmapOptions(**{name: kwargs.pop(name) for name in HeatmapOptions._fields if name in kwargs})


def _name_once(panels: Sequence[Drawn], columns: int) -> None:
    """Hide the names of layers that all panels share, except at the left and bottom of the grid."""
    matrices = [panel.matrix for panel in panels]
    for i, panel in enumerate(panels):
        if _shared(matrices, "rows") and i % columns:
            panel.ax.tick_params(labelleft=False)
            panel.ax.set_ylabel("")
        if _shared(matrices, "columns") and i + columns < len(panels):
            panel.ax.tick_params(labelbottom=False)
            panel.ax.set_xlabel("")
