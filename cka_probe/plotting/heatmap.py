"""The heatmap of layers against layers: the picture of this field."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from ..similarity.matrix import SimilarityMatrix
from .canvas import as_similarity, is_square, names_size, picture_size
from .cells import annotate_cells, hatch_cells, mark_cells
from .labels import font_size, label_axis, root_figure, shorten
from .scale import colour_limits, draw_colorbar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_heatmap"]

# Lightness rises steadily in magma: it reads the same in grey and for colour-blind readers, and is the field's custom.
CMAP = "magma"


def plot_heatmap(
    matrix: SimilarityMatrix | pd.DataFrame | ArrayLike,
    *,
    ax: Axes | None = None,
    annotate: bool | Literal["auto", "error"] = "auto",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: Any = CMAP,
    layer_labels: bool | Literal["auto"] = "auto",
    title: str | None = None,
    colorbar: bool = True,
    significance: float | None = None,
    **kwargs: Any,
) -> Axes:
    """The axes with the similarities as colours: rows upwards, columns to the right, the first layers at lower left.

    Input layers meet at the lower left and output layers at the upper right, as in the CKA literature. Undefined cells
    are hatched and take no colour. The colours span 0 to 1, and further where values lie outside (unbiased CKA may be
    negative); nothing is clipped unless `vmin` or `vmax` say so, and then the colour bar has an arrow. Where the matrix
    holds several models, lines separate them. The mark "chance" on the colour bar shows what independent layers would
    give: a line, or a band from the smallest to the largest of the cells.

    Parameters
    ----------
    matrix : SimilarityMatrix, DataFrame or array (R, C)
        What to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw. By default a new figure, sized by the number of layers.
    annotate : bool, "auto" or "error"
        Numbers in the cells: always, never, where they fit, or with their standard error where that fits.
    vmin, vmax : float, optional
        Ends of the colour scale.
    cmap : str or matplotlib.colors.Colormap
        Colours.
    layer_labels : bool or "auto"
        Layer names: "auto" leaves out the path shared by all (it goes to the axis label) and as many names as do not
        fit; True writes every full name; False none.
    title : str, optional
        Above the axes.
    colorbar : bool
        Whether to draw the scale.
    significance : float, optional
        Crosses out the cells that do not differ from chance at this false discovery rate (Benjamini-Hochberg over all
        cells of ``matrix.p_value``).
    **kwargs
        To :meth:`matplotlib.axes.Axes.imshow`.

    Returns
    -------
    matplotlib.axes.Axes
        The colours are its first image.

    Raises
    ------
    TypeError
        If `matrix` does not hold real numbers.
    ValueError
        If the matrix is empty, or `significance` or ``annotate="error"`` ask for what it does not hold.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_heatmap([[1.0, 0.4], [0.4, 1.0]], title="two layers")
    >>> len(ax.images), ax.get_title()
    (1, 'two layers')
    >>> plt.close()
    """
    matrix = as_similarity(matrix)
    options = HeatmapOptions(annotate, layer_labels, significance)
    options.check(matrix)
    if "norm" in kwargs and not (vmin is None and vmax is None):
        raise ValueError("Give either `norm` or `vmin` and `vmax`: the norm holds its own ends.")
    ax = _new_axes(matrix) if ax is None else ax
    style = {"cmap": cmap, "title": title, "colorbar": colorbar} | kwargs
    finish_heatmaps([draw_heatmap(matrix, ax, options, vmin=vmin, vmax=vmax, **style)])
    return ax


class HeatmapOptions(NamedTuple):
    """What is written beside and into a heatmap; see :func:`plot_heatmap`."""

    annotate: bool | str = "auto"
    layer_labels: bool | str = "auto"
    significance: float | None = None

    def check(self, matrix: SimilarityMatrix) -> None:
        """Refuse what this matrix cannot give, before anything is drawn.

        Parameters
        ----------
        matrix : SimilarityMatrix
            To be drawn.

        Raises
        ------
        ValueError
            Naming the argument.
        """
        if not matrix.values.size:
            raise ValueError(f"There is nothing to draw: the matrix has shape {matrix.shape}.")
        _check_choice("annotate", self.annotate, (True, False, "auto", "error"))
        _check_choice("layer_labels", self.layer_labels, (True, False, "auto"))
        if self.annotate == "error" and matrix.standard_error is None:
            raise ValueError("`annotate='error'` needs a matrix with a standard error; this one has none. Use 'auto'.")
        if self.significance is None:
            return
        if matrix.p_value is None:
            raise ValueError(
                "`significance` needs a matrix with p-values; this one has none. Leave `significance` out."
            )
        if not 0 < self.significance < 1:
            raise ValueError(f"`significance` must lie strictly between 0 and 1, got {self.significance}.")


class Drawn(NamedTuple):
    """A heatmap whose colours are drawn; names and numbers wait until the size of the axes is known."""

    ax: Axes
    image: AxesImage
    matrix: SimilarityMatrix
    options: HeatmapOptions
    sizes: tuple[float, float]


def draw_heatmap(
    matrix: SimilarityMatrix,
    ax: Axes,
    options: HeatmapOptions,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: Any = CMAP,
    title: str | None = None,
    colorbar: bool = True,
    **kwargs: Any,
) -> Drawn:
    """The colours of a heatmap, its hatches, separators and scale.

    Parameters
    ----------
    matrix, ax, options, vmin, vmax, cmap, title, colorbar, **kwargs
        As in :func:`plot_heatmap`.
    """
    sizes = (font_size(ax.xaxis), font_size(ax.yaxis))
    undefined = ~np.isfinite(matrix.values)
    if "norm" not in kwargs:
        low, high = colour_limits([matrix])
        kwargs |= {"vmin": low if vmin is None else vmin, "vmax": high if vmax is None else vmax}
    aspect = "equal" if is_square(matrix.shape) else "auto"
    style = {"cmap": cmap, "origin": "lower", "interpolation": "nearest", "aspect": aspect} | kwargs
    image = ax.imshow(np.ma.masked_array(matrix.values, undefined), **style)
    hatch_cells(ax, undefined)
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title)
    blocks = _separate_models(ax, matrix)
    if colorbar:
        draw_colorbar(ax, image, matrix, gap=4.0 + blocks)
    _name_axes(ax, matrix, full=options.layer_labels is True)
    return Drawn(ax, image, matrix, options, sizes)


def finish_heatmaps(panels: Sequence[Drawn]) -> None:
    """Write layer names and numbers in sizes that fit the room which all panels together leave.

    Parameters
    ----------
    panels : sequence of Drawn
        All heatmaps of a figure that belong together.
    """
    for _ in range(2):  # the room depends on the length of the names, and which names fit on the room
        for panel in panels:
            ax, full = panel.ax, panel.options.layer_labels is True
            if panel.options.layer_labels is False:
                ax.set(xticks=[], yticks=[])
                continue
            sides = ((ax.xaxis, panel.matrix.columns), (ax.yaxis, panel.matrix.rows))
            for (axis, names), size in zip(sides, panel.sizes, strict=True):
                label_axis(axis, names if full else shorten(names)[0], size, every=full)
        _settle([panel.ax for panel in panels])
    for ax, image, matrix, (annotate, _, significance), _ in panels:
        written = []
        if annotate:
            texts = _texts(matrix, error=annotate == "error")
            written = annotate_cells(ax, image, texts, force=annotate not in ("auto", "error"))
        if significance is not None:
            meaning = f"not significant (false discovery rate {significance:g})"
            if mark_cells(ax, image, _insignificant(matrix, significance), meaning, corner=bool(written)) is not None:
                # Told below the picture, where it hides no cell.
                ax.set_xlabel("\n".join(filter(None, [ax.get_xlabel(), f"× {meaning}"])))


def _settle(axes: Sequence[Axes]) -> None:
    """Give the axes the size that they will be drawn with, so that what fits can be measured."""
    figure = root_figure(axes[0])
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    for ax in axes:
        ax.apply_aspect()


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _new_axes(matrix: SimilarityMatrix) -> Axes:
    """Axes of a figure of its own, of a size at which the names of up to about 60 layers can all be read."""
    import matplotlib.pyplot as plt

    width, height = picture_size(matrix.shape, [1, 6, 18, 60, 120], [1.8, 3.4, 6.0, 6.6, 7.6])
    size = (width + names_size(matrix.rows) + 1.2, height + names_size(matrix.columns) + 0.3)
    return plt.subplots(figsize=size, layout="constrained")[1]


def _texts(matrix: SimilarityMatrix, *, error: bool) -> list[list[str]]:
    texts = [[_number(value) if np.isfinite(value) else "" for value in row] for row in matrix.values]
    if error and matrix.standard_error is not None:
        for row, errors in zip(texts, matrix.standard_error, strict=True):
            row[:] = [f"{t}\n±{e:.2g}" if t and np.isfinite(e) else t for t, e in zip(row, errors, strict=True)]
    return texts


def _number(value: float) -> str:
    """Two decimals with a typographic minus, as on the axes; a rounded zero has no sign."""
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
    """Lines between the models and their names at the top and right; the points that these take at the right."""
    taken = 0.0
    for side, models in (("x", matrix.column_models), ("y", matrix.row_models)):
        runs = [(name, len(list(group))) for name, group in groupby(models or ())]
        if len(runs) < 2:
            continue
        counts = np.array([count for _, count in runs])
        ends = np.cumsum(counts)
        draw = ax.axvline if side == "x" else ax.axhline
        for end in ends[:-1]:
            # White on black is seen on every colour.
            draw(end - 0.5, color="black", linewidth=2.2)
            draw(end - 0.5, color="white", linewidth=1.2)
        centres = ends - counts / 2 - 0.5
        names = [name for name, _ in runs]
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
    """Each axis bears the name of its model and the path that its layers share."""
    for axis, layers, models, key in (
        (ax.xaxis, matrix.columns, matrix.column_models, "model_y"),
        (ax.yaxis, matrix.rows, matrix.row_models, "model_x"),
    ):
        # Several models are named at their blocks instead.
        alone = models is None or len(set(models)) < 2
        model = (models[0] if models else str(matrix.meta.get(key) or "")) if alone else ""
        prefix = "" if full else shorten(layers)[1]
        axis.set_label_text(": ".join(filter(None, [model, f"{prefix}.*" if prefix else ""])))
