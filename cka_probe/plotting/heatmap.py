"""The heatmap of layers against layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from ..similarity.matrix import SimilarityMatrix
from .canvas import as_similarity, check_fraction, heatmap_size, is_square, names_size, new_axes, trim_height
from .cells import annotate_cells, hatch_cells, mark_cells, may_be_readable
from .labels import font_size, label_axis, root_figure, shorten
from .scale import colour_scale, draw_colorbar
from .style import in_house_style
from .text import LONG, as_shown, plain, set_given, set_plain
from .views import View, hidden_cells, mark_best

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CMAP", "Drawn", "HeatmapOptions", "draw_heatmap", "finish_heatmaps", "plot_heatmap"]

# The lightness of magma rises steadily, so grey prints and colour-blind readers see the same order. CKA papers use it.
CMAP = "magma"


@in_house_style
def plot_heatmap(
    matrix: SimilarityMatrix | pd.DataFrame | ArrayLike,
    *,
    ax: Axes | None = None,
    annotate: bool | Literal["auto", "error"] = "auto",
    limits: Literal["auto", "full", "data", "chance"] | tuple[float, float] = "auto",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: Any = CMAP,
    rows: Any = None,
    columns: Any = None,
    labels: Mapping[str, str] | Callable[[str], str] | None = None,
    layer_labels: bool | Literal["auto", "depth"] = "auto",
    mask: Literal["upper", "lower"] | ArrayLike | None = None,
    best_match: bool = False,
    title: str | None = None,
    colorbar: bool = True,
    significance: float | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw the similarities as colours: rows upwards, columns to the right, the first layers at the lower left.

    The input layers meet at the lower left and the output layers at the upper right, as in the CKA literature.
    Undefined cells are hatched and have no colour, and a line below the picture says so. The colours span 0 to 1, or
    more if values lie outside (unbiased CKA may be negative); see `limits` for other scales. Where values lie beyond
    the scale, the colour bar has an arrow. If the matrix holds several models, lines separate them. The mark "chance"
    on the colour bar is the value that independent layers would give: one line, or two at the smallest and the largest
    chance level of the cells.

    Parameters
    ----------
    matrix : SimilarityMatrix, DataFrame or array (R, C)
        Similarities to draw.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure, whose size depends on the number of layers.
    annotate : bool, "auto" or "error"
        Numbers in the cells: True always, False never, "auto" if they fit, "error" with standard errors if they fit.
    limits : "auto", "full", "data", "chance" or (low, high)
        Colour scale: "full" is 0 to 1, or wider if values lie outside; "data" spans the smallest to the largest value;
        "chance" starts at the (smallest) chance level. "auto" is "full", except where the values fill less than a tenth
        of it, so that one could not tell them apart: there it is "data". The colour bar says so.
    vmin, vmax : float, optional
        Ends of the colour scale, instead of those of `limits`.
    rows, columns : str or sequence of str, optional
        Layers to draw, in this order: names or patterns, as in :meth:`cka_probe.SimilarityMatrix.select`.
    labels : mapping of layer to name, or function, optional
        Names to write instead of those of the layers.
    mask : "upper", "lower" or bool array (R, C), optional
        Cells that are not drawn: the half of a symmetric matrix above or below the diagonal, or those that are True.
    best_match : bool
        Frame the most similar column of each row (in small cells: a white dot).
    cmap : str or matplotlib.colors.Colormap
        Colours.
    layer_labels : bool, "auto" or "depth"
        Layer names. "auto" moves the path that all layers share to the axis label; if not all names fit, it writes a
        few, and how many layers there are. "depth" writes the numbers of the layers, from 0, instead of names. True
        writes every full name; False writes none.
    title : str, optional
        Title of the axes. Between dollar signs it may hold mathematics; names of layers and models never do.
    colorbar : bool
        Whether to draw the colour bar.
    significance : float, optional
        Cross out the cells that do not differ from chance at this false discovery rate (Benjamini-Hochberg over all
        cells of ``matrix.p_value``).
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.imshow`.

    Returns
    -------
    matplotlib.axes.Axes
        The first image of the axes holds the colours.

    Raises
    ------
    TypeError
        If `matrix` does not hold real numbers.
    ValueError
        If the matrix is empty, an option has an unknown value, `norm` is given with `vmin`, `vmax` or `limits`, the
        matrix lacks the standard errors, p-values or chance levels that an option needs, `mask` hides a half of a
        matrix that is not symmetric, or `rows`, `columns` or `labels` name a layer that does not exist.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_heatmap([[1.0, 0.4], [0.4, 1.0]], title="two layers")
    >>> len(ax.images), ax.get_title()
    (1, 'two layers')
    >>> plt.close()
    """
    matrix = View(rows, columns, labels).of(as_similarity(matrix))
    options = HeatmapOptions(annotate, layer_labels, significance, mask, best_match)
    options.check(matrix)
    if "norm" in kwargs and not (vmin is None and vmax is None and limits == "auto"):
        raise ValueError("Give either `norm` or `limits`, `vmin` and `vmax`: the norm holds its own ends.")
    ends: dict[str, Any] = {"vmin": vmin, "vmax": vmax, "limits": limits}
    own = ax is None
    ax = _sized_axes(matrix, full=layer_labels is True) if ax is None else ax
    style = {"cmap": cmap, "title": title, "colorbar": colorbar} | kwargs
    finish_heatmaps([draw_heatmap(matrix, ax, options, **ends, **style)], trim=own)
    return ax


class HeatmapOptions(NamedTuple):
    """Options for the text on and beside a heatmap; see :func:`plot_heatmap`."""

    annotate: bool | str = "auto"
    layer_labels: bool | str = "auto"
    significance: float | None = None
    mask: Any = None
    best_match: bool = False

    def check(self, matrix: SimilarityMatrix) -> None:
        """Raise an error, before anything is drawn, if the options do not fit the matrix.

        Parameters
        ----------
        matrix : SimilarityMatrix
            Matrix that will be drawn.

        Raises
        ------
        ValueError
            If the matrix is empty, an option has an unknown value, or the matrix lacks the data that it needs.
        """
        if not matrix.values.size:
            raise ValueError(f"There is nothing to draw: the matrix has shape {matrix.shape}.")
        _check_choice("annotate", self.annotate, (True, False, "auto", "error"))
        _check_choice("layer_labels", self.layer_labels, (True, False, "auto", "depth"))
        if self.best_match and hidden_cells(matrix, self.mask).any():
            raise ValueError("`best_match` needs whole rows, and `mask` hides parts of them. Leave one of both out.")
        if self.annotate == "error" and matrix.standard_error is None:
            raise ValueError("`annotate='error'` needs a matrix with a standard error; this one has none. Use 'auto'.")
        if self.significance is None:
            return
        if matrix.p_value is None:
            raise ValueError(
                "`significance` needs a matrix with p-values; this one has none. Leave `significance` out."
            )
        check_fraction("significance", self.significance)


class Drawn(NamedTuple):
    """A heatmap without names and numbers: they are written when the size of the axes is known."""

    ax: Axes
    image: AxesImage
    matrix: SimilarityMatrix
    options: HeatmapOptions
    sizes: tuple[float, float]
    hidden: NDArray[np.bool_]


def draw_heatmap(
    matrix: SimilarityMatrix,
    ax: Axes,
    options: HeatmapOptions,
    *,
    limits: Any = "auto",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: Any = CMAP,
    title: str | None = None,
    colorbar: bool = True,
    **kwargs: Any,
) -> Drawn:
    """Draw the colours of a heatmap, its hatches, the lines between models and the colour bar.

    Parameters
    ----------
    matrix, ax, options, limits, vmin, vmax, cmap, title, colorbar, **kwargs
        As in :func:`plot_heatmap`.
    """
    sizes = (font_size(ax.xaxis), font_size(ax.yaxis))
    hidden = hidden_cells(matrix, options.mask)
    undefined = ~np.isfinite(matrix.values)
    says = ""
    if "norm" not in kwargs:
        # One given end keeps the other where it would be without it.
        alone = limits == "auto" and not (vmin is None and vmax is None)
        low, high, says = colour_scale([matrix], "full" if alone else limits)
        kwargs |= {"vmin": low if vmin is None else vmin, "vmax": high if vmax is None else vmax}
    aspect = "equal" if is_square(matrix.shape) else "auto"
    style = {"cmap": cmap, "origin": "lower", "interpolation": "nearest", "aspect": aspect} | kwargs
    image = ax.imshow(np.ma.masked_array(matrix.values, undefined | hidden), **style)
    hatch_cells(ax, undefined & ~hidden)
    ax.spines[:].set_visible(False)
    if title is not None:
        set_given(ax.title, title)
    blocks = _separate_models(ax, matrix)
    if colorbar:
        draw_colorbar(ax, image, matrix, gap=4.0 + blocks, says=says if vmin is None and vmax is None else "")
    _name_axes(ax, matrix, full=options.layer_labels is True)
    return Drawn(ax, image, matrix, options, sizes, hidden)


def finish_heatmaps(panels: Sequence[Drawn], *, trim: bool) -> None:
    """Write layer names and numbers in sizes that fit the heatmaps.

    Parameters
    ----------
    panels : sequence of Drawn
        All heatmaps of one figure, because they share its space.
    trim : bool
        Whether empty height of the figure is taken away: of a new one, not of one that the caller has made.
    """
    for _ in range(2):  # the names change the size of the axes, and that size decides which names fit
        for panel in panels:
            ax, full = panel.ax, panel.options.layer_labels is True
            if panel.options.layer_labels is False:
                ax.set(xticks=[], yticks=[])
                continue
            sides = ((ax.xaxis, panel.matrix.columns), (ax.yaxis, panel.matrix.rows))
            for (axis, names), size in zip(sides, panel.sizes, strict=True):
                few = panel.options.layer_labels == "depth"
                written = [str(i) for i in range(len(names))] if few else names if full else shorten(names)[0]
                label_axis(axis, written, size, every=full, few=few)
        _settle([panel.ax for panel in panels])
    for ax, image, matrix, (annotate, layer_names, significance, _, best), _, hidden in panels:
        numbers: list[Any] = []
        if annotate and (annotate not in ("auto", "error") or may_be_readable(ax, matrix.shape)):
            texts = _texts(matrix, hidden, error=annotate == "error")
            numbers = annotate_cells(ax, image, texts, force=annotate not in ("auto", "error"))
        if layer_names is not False:
            _say_depth(ax, matrix)
        legend = [ax.get_xlabel()]
        if best:
            legend.append(f"{mark_best(ax, image, matrix)}: best match of each row")
        if significance is not None:
            meaning = f"not significant (false discovery rate {significance:g})"
            if (
                mark_cells(ax, image, _insignificant(matrix, significance) & ~hidden, meaning, corner=bool(numbers))
                is not None
            ):
                legend.append(f"× {meaning}")
        if not (np.isfinite(matrix.values) | hidden).all():
            mark = "hatched" if len(ax.images) == 1 else "grey"  # hatch_cells greys thousands of single cells
            legend.append(f"{mark}: undefined" + (", see its notes" if matrix.notes else ""))
        # Below the picture the legend covers no cell.
        ax.xaxis.label.set_text("\n".join(filter(None, legend)))
    if trim:
        trim_height(root_figure(panels[0].ax))


def _settle(axes: Sequence[Axes]) -> None:
    """Run the layout, so that the axes have their final size and texts can be fitted to it."""
    figure = root_figure(axes[0])
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    for ax in axes:
        ax.apply_aspect()


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _sized_axes(matrix: SimilarityMatrix, *, full: bool) -> Axes:
    """Axes of a new figure, large enough to read the names of up to about 60 layers."""
    beside, below = names_size(matrix.rows, full=full), names_size(matrix.columns, full=full)
    return new_axes(heatmap_size(matrix.shape, beside, below, natural=full))


def _say_depth(ax: Axes, matrix: SimilarityMatrix) -> None:
    """Where an axis names some of its layers only, say how many there are and that they are in order of depth."""
    for axis, count, side in ((ax.xaxis, len(matrix.columns), "bottom"), (ax.yaxis, len(matrix.rows), "left")):
        if axis.get_tick_params().get(f"label{side}", True) and len(axis.get_majorticklocs()) < count:
            set_plain(axis.label, ": ".join(filter(None, [axis.label.get_text(), f"{count} layers in order of depth"])))


def _texts(matrix: SimilarityMatrix, hidden: NDArray[np.bool_], *, error: bool) -> list[list[str]]:
    shown = np.where(hidden, np.nan, matrix.values)
    texts = [[_number(value) if np.isfinite(value) else "" for value in row] for row in shown]
    if error and matrix.standard_error is not None:
        for row, errors in zip(texts, matrix.standard_error, strict=True):
            row[:] = [f"{t}\n±{e:.2g}" if t and np.isfinite(e) else t for t, e in zip(row, errors, strict=True)]
    return texts


def _number(value: float) -> str:
    """Number with two decimals and a typographic minus, as on the axes; a value that rounds to 0 has no sign."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def _insignificant(matrix: SimilarityMatrix, rate: float) -> NDArray[np.bool_]:
    from scipy.stats import false_discovery_control

    assert matrix.p_value is not None
    known = np.isfinite(matrix.p_value) & np.isfinite(matrix.values)
    mask = np.zeros(matrix.shape, dtype=bool)
    mask[known] = false_discovery_control(matrix.p_value[known]) > rate
    return mask


def _separate_models(ax: Axes, matrix: SimilarityMatrix) -> float:
    """Draw lines between the models and their names at the top and right; return the width of the latter in points."""
    taken = 0.0
    for side, models in (("x", matrix.column_models), ("y", matrix.row_models)):
        runs = [(name, len(list(group))) for name, group in groupby(models or ())]
        if len(runs) < 2:
            continue
        counts = np.array([count for _, count in runs])
        ends = np.cumsum(counts)
        draw = ax.axvline if side == "x" else ax.axhline
        for end in ends[:-1]:
            # A white line on a black one can be seen on every colour.
            draw(end - 0.5, color="black", linewidth=2.2)
            draw(end - 0.5, color="white", linewidth=1.2)
        centres = ends - counts / 2 - 0.5
        names = [plain(as_shown(name)) for name, _ in runs]
        if side == "x":
            second = ax.secondary_xaxis("top")
            second.set_xticks(centres, names)
        else:
            second = ax.secondary_yaxis("right")
            second.set_yticks(centres, names, rotation=270, va="center")
            taken = 16.0
        second.tick_params(length=0)
        second.spines[:].set_visible(False)
    return taken


def _name_axes(ax: Axes, matrix: SimilarityMatrix, *, full: bool) -> None:
    """Label each axis with the name of its model and the path that its layers share."""
    for axis, layers, models, key in (
        (ax.xaxis, matrix.columns, matrix.column_models, "model_y"),
        (ax.yaxis, matrix.rows, matrix.row_models, "model_x"),
    ):
        # The names of several models are written at their blocks instead.
        alone = models is None or len(set(models)) < 2
        model = (models[0] if models else str(matrix.meta.get(key) or "")) if alone else ""
        prefix = "" if full else shorten(layers)[1]
        set_plain(
            axis.label,
            ": ".join(filter(None, [as_shown(model, LONG), as_shown(f"{prefix}.*", LONG) if prefix else ""])),
        )
