"""The colour scale of a heatmap: what it spans, what it measures, and where chance lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from ..similarity.matrix import SimilarityMatrix
from .labels import LINE, font_size, length, root_figure

_NAMES = {"cka": "CKA", "hsic": "HSIC", "mmd": "MMD", "mmd_squared": "MMD²", "cca": "CCA", "svcca": "SVCCA"}
_NAMES |= {"pwcca": "PWCCA", "nbs": "NBS", "rsa": "RSA", "gulp": "GULP", "procrustes": "Procrustes"}


def colour_limits(matrices: Sequence[SimilarityMatrix]) -> tuple[float, float]:
    """Ends of one colour scale for all the matrices: 0 to 1, and further where values lie outside.

    Parameters
    ----------
    matrices : sequence of SimilarityMatrix
        Those that will share the scale.

    Returns
    -------
    low, high : float
        ``low <= 0`` and ``high >= 1``.
    """
    defined = np.concatenate([m.values[np.isfinite(m.values)] for m in matrices])
    return min(0.0, float(defined.min(initial=0))), max(1.0, float(defined.max(initial=1)))


def measure_label(matrix: SimilarityMatrix) -> str:
    """Name of the measure for a reader, with the estimator where it is known, as in "CKA (unbiased)"."""
    name = _NAMES.get(matrix.measure, matrix.measure)
    estimator = matrix.meta.get("estimator")
    return f"{name} ({estimator})" if estimator else name


class Beside:
    """Places an axes at the right of another, as tall as that one is drawn, in points instead of fractions.

    Parameters
    ----------
    parent : matplotlib.axes.Axes
        The heatmap; with square cells it is drawn smaller than its slot.
    gap, width : float
        Distance and width in points.
    """

    def __init__(self, parent: Axes, gap: float, width: float) -> None:
        self.parent = parent
        self.gap = gap
        self.width = width

    def __call__(self, ax: Any, renderer: Any) -> Bbox:  # noqa: ARG002  (matplotlib passes both)
        """Position in fractions of the figure."""
        box = self.parent.get_position()
        point = _point(self.parent)
        return Bbox.from_bounds(box.x1 + self.gap * point, box.y0, self.width * point, box.height)


class EndsLocator(Locator):
    """Ticks at both ends of a scale, and at as many round numbers between as have room when it is drawn.

    Parameters
    ----------
    low, high : float
        The ends.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def __call__(self) -> list[float]:
        """Positions of the ticks along the axis as it is drawn now."""
        return self.tick_values(self.low, self.high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Positions of the ticks from `vmin` to `vmax`."""
        assert self.axis is not None
        lines = max(length(self.axis) / (LINE * font_size(self.axis)), 2.0)  # type: ignore[arg-type]
        room = (vmax - vmin) / lines
        between = MaxNLocator(max(1, min(5, int(lines / 2)))).tick_values(vmin, vmax)
        return [vmin, *(float(tick) for tick in between if min(tick - vmin, vmax - tick) > room), vmax]


def _number(value: float, _: int | None = None) -> str:
    """Three digits at most: the ends of a scale are data, not round numbers."""
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def draw_colorbar(ax: Axes, image: AxesImage, matrix: SimilarityMatrix, *, gap: float) -> Colorbar:
    """The scale beside a heatmap with its ends, the measure's name, and the mark of the chance level.

    Parameters
    ----------
    ax, image
        The heatmap and its colours.
    matrix : SimilarityMatrix
        Names the measure, holds the chance level.
    gap : float
        Distance from the heatmap in points.

    Returns
    -------
    matplotlib.colorbar.Colorbar
        In an inset of `ax`, so that it moves with it. Arrows at its ends say that values lie beyond.
    """
    chance = matrix.chance[np.isfinite(matrix.chance)] if matrix.chance is not None else np.empty(0)
    bar = add_bar(ax, image, gap=gap + (14.0 if chance.size else 0.0), label=measure_label(matrix))
    if chance.size:
        _mark_chance(bar, float(chance.min()), float(chance.max()))
    return bar


def add_bar(ax: Axes, image: AxesImage, *, gap: float, label: str) -> Colorbar:
    """The scale of an image beside it, as tall as the image is drawn, with both ends named.

    Parameters
    ----------
    ax, image
        The axes and its colours.
    gap : float
        Distance in points.
    label : str
        What is measured.

    Returns
    -------
    matplotlib.colorbar.Colorbar
        In an inset of `ax`. Arrows at its ends say that values lie beyond.
    """
    width = 10.0
    if root_figure(ax).get_layout_engine() is None:
        _give_room(ax, gap + width + 44.0)
    cax = ax.inset_axes((1.0, 0.0, 0.1, 1.0))
    cax.set_axes_locator(Beside(ax, gap, width))
    low, high = image.get_clim()
    values: Any = np.ma.masked_invalid(np.ma.asarray(image.get_array())).compressed()
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    bar = root_figure(ax).colorbar(image, cax=cax, extend=extend, label=label)
    bar.outline.set_visible(False)
    if type(image.norm) is Normalize:  # other norms (logarithmic, say) come with ticks of their own
        bar.ax.yaxis.set_major_locator(EndsLocator(low, high))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_number))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    return bar


def _point(ax: Axes) -> float:
    """One point as a fraction of the width of the figure, or of the subfigure, in which the axes lie."""
    return root_figure(ax).dpi / 72 / ax.figure.bbox.width


def _give_room(ax: Axes, points: float) -> None:
    """Make the axes narrower where no layout engine will: the scale must not lie on the neighbour."""
    box = ax.get_position(original=True)
    taken = points * _point(ax)
    ax.set_position(Bbox.from_bounds(box.x0, box.y0, max(box.width - taken, 0.3 * box.width), box.height))
    ax.set_in_layout(True)  # a later tight_layout may still move it


def _mark_chance(bar: Colorbar, first: float, last: float) -> None:
    """A line at the chance level or two around its range, and the word at the side of the bar that has no ticks."""
    low, high = bar.mappable.get_clim()
    for level in {first, last}:
        if low <= level <= high:
            bar.ax.axhline(level, color="white", linewidth=2.6)
            bar.ax.axhline(level, color="black", linewidth=1.2)
    middle = (first + last) / 2
    place = float(np.clip(bar.norm(np.array(middle)), 0, 1))
    bar.ax.annotate(
        "chance" if low <= middle <= high else f"chance {_number(middle)}",  # off the scale it is said in figures
        (0, place),
        xycoords="axes fraction",
        xytext=(-2, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom" if place < 0.1 else "top" if place > 0.9 else "center",
        fontsize="small",
    )
