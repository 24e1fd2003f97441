"""The colour scale of a heatmap: its limits, its label, and the mark of the chance level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from ..similarity.matrix import SimilarityMatrix
from .labels import LINE, font_size, length, root_figure
from .text import LONG, as_shown, set_plain

__all__ = [
    "Beside",
    "EndsLocator",
    "Scale",
    "add_bar",
    "colour_limits",
    "colour_scale",
    "draw_colorbar",
    "measure_label",
]

LIMITS = ("auto", "full", "data", "chance")
NARROW = 0.1
"""Share of the full scale below which its colours could not be told apart."""

_NAMES = {"cka": "CKA", "hsic": "HSIC", "mmd": "MMD", "mmd_squared": "MMD²", "cca": "CCA", "svcca": "SVCCA"}
_NAMES |= {"pwcca": "PWCCA", "nbs": "NBS", "rsa": "RSA", "gulp": "GULP", "procrustes": "Procrustes"}


def colour_limits(matrices: Sequence[SimilarityMatrix]) -> tuple[float, float]:
    """Limits of one colour scale for all matrices: 0 to 1, or wider if values lie outside.

    Parameters
    ----------
    matrices : sequence of SimilarityMatrix
        Matrices that share the scale.

    Returns
    -------
    low, high : float
        ``low <= 0`` and ``high >= 1``.
    """
    defined = np.concatenate([m.values[np.isfinite(m.values)] for m in matrices])
    return min(0.0, float(defined.min(initial=0))), max(1.0, float(defined.max(initial=1)))


class Scale(NamedTuple):
    """Ends of a colour scale, and what its bar says about them."""

    low: float
    high: float
    says: str = ""


def colour_scale(matrices: Sequence[SimilarityMatrix], limits: Any) -> Scale:
    """The colour scale that all matrices share.

    Parameters
    ----------
    matrices : sequence of SimilarityMatrix
        Matrices that share the scale.
    limits : "auto", "full", "data", "chance" or (low, high)
        See :func:`plot_heatmap`.

    Raises
    ------
    ValueError
        If `limits` has another value, or no matrix has the chance level that is asked for.
    """
    if isinstance(limits, Scale):  # of all panels of a figure
        return limits
    full = Scale(*colour_limits(matrices))
    if not isinstance(limits, str):
        try:
            low, high = map(float, limits)
        except (TypeError, ValueError):
            low = high = np.nan
        if not low < high:
            raise ValueError(
                f"`limits` must be one of {', '.join(LIMITS)}, or (low, high) with low < high; got {limits!r}."
            )
        return Scale(low, high)
    if limits not in LIMITS:
        raise ValueError(f"`limits` must be one of {', '.join(LIMITS)}, or (low, high); got {limits!r}.")
    defined = np.concatenate([m.values[np.isfinite(m.values)] for m in matrices])
    if limits == "chance":
        levels = [m.chance[np.isfinite(m.chance)] for m in matrices if m.chance is not None]
        known = np.concatenate(levels) if levels else np.empty(0)
        if not known.size:
            raise ValueError("`limits='chance'` needs a matrix with chance levels; this one has none. Use 'data'.")
        return Scale(float(known.min()), full.high, "colours start at chance")
    low, high = (float(defined.min()), float(defined.max())) if defined.size else (0.0, 0.0)
    narrow = high - low < NARROW * (full.high - full.low)
    # Equal values have no span: any scale gives them one colour.
    if low < high and (limits == "data" or (limits == "auto" and narrow)):
        return Scale(low, high, "colours span the values")
    return full


def measure_label(matrix: SimilarityMatrix) -> str:
    """Name of the measure, with the estimator if it is known, for example "CKA (unbiased)"."""
    name = _NAMES.get(matrix.measure, matrix.measure)
    estimator = matrix.meta.get("estimator")
    return f"{name} ({estimator})" if estimator else name


class Beside:
    """Locator that places axes at the right of other axes, with the same height as those are drawn.

    Parameters
    ----------
    parent : matplotlib.axes.Axes
        Axes of the heatmap. With square cells they are drawn smaller than their place in the layout.
    gap, width : float
        Distance from `parent` and width, in points.
    """

    def __init__(self, parent: Axes, gap: float, width: float) -> None:
        self.parent = parent
        self.gap = gap
        self.width = width

    def __call__(self, ax: Any, renderer: Any) -> Bbox:  # noqa: ARG002  (matplotlib passes both)
        """Position of the placed axes in fractions of the figure."""
        box = self.parent.get_position()
        point = _point(self.parent)
        return Bbox.from_bounds(box.x1 + self.gap * point, box.y0, self.width * point, box.height)


class EndsLocator(Locator):
    """Ticks at both ends of a scale and at round numbers in between, as many as have room.

    Parameters
    ----------
    low, high : float
        Ends of the scale.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def __call__(self) -> list[float]:
        """Positions of the ticks, for the current length of the axis."""
        return self.tick_values(self.low, self.high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Positions of the ticks from `vmin` to `vmax`."""
        assert self.axis is not None
        lines = max(length(self.axis) / (LINE * font_size(self.axis)), 2.0)  # type: ignore[arg-type]
        room = (vmax - vmin) / lines
        between = MaxNLocator(max(1, min(5, int(lines / 2)))).tick_values(vmin, vmax)
        return [vmin, *(float(tick) for tick in between if min(tick - vmin, vmax - tick) > room), vmax]


def _number(value: float, _: int | None = None) -> str:
    """Tick label of at most three significant digits: the ends of a scale are data, not round numbers."""
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def draw_colorbar(ax: Axes, image: AxesImage, matrix: SimilarityMatrix, *, gap: float, says: str = "") -> Colorbar:
    """Draw the colour bar of a heatmap, with the measure's name and a mark at the chance level.

    Parameters
    ----------
    ax, image
        Axes of the heatmap and its image.
    matrix : SimilarityMatrix
        Matrix that gives the measure and the chance level.
    gap : float
        Distance from the heatmap in points.
    says : str
        What the bar says about its ends.

    Returns
    -------
    matplotlib.colorbar.Colorbar
        Colour bar in an inset of `ax`, so it moves with `ax`. An arrow at an end means that values lie beyond it.
    """
    chance = matrix.chance[np.isfinite(matrix.chance)] if matrix.chance is not None else np.empty(0)
    bar = add_bar(ax, image, gap=gap + (14.0 if chance.size else 0.0), label=measure_label(matrix), says=says)
    if chance.size:
        _mark_chance(bar, float(chance.min()), float(chance.max()))
    return bar


def add_bar(ax: Axes, image: AxesImage, *, gap: float, label: str, says: str = "") -> Colorbar:
    """Draw the colour bar of an image beside it, as tall as the image, with tick labels at both ends.

    Parameters
    ----------
    ax, image
        Axes and their image.
    gap : float
        Distance from the image in points.
    label : str
        Label of the colour bar.
    says : str
        A second line of the label.

    Returns
    -------
    matplotlib.colorbar.Colorbar
        Colour bar in an inset of `ax`. An arrow at an end means that values lie beyond it.
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
    bar = root_figure(ax).colorbar(image, cax=cax, extend=extend)
    set_plain(bar.ax.yaxis.label, "\n".join(filter(None, [as_shown(label, LONG), says])))
    bar.outline.set_visible(False)
    if type(image.norm) is Normalize:  # other norms, such as a logarithmic one, set their own ticks
        bar.ax.yaxis.set_major_locator(EndsLocator(low, high))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_number))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    return bar


def _point(ax: Axes) -> float:
    """One point as a fraction of the width of the figure or subfigure that holds the axes."""
    return root_figure(ax).dpi / 72 / ax.figure.bbox.width


def _give_room(ax: Axes, points: float) -> None:
    """Make the axes narrower, because without a layout engine the colour bar would cover the next axes."""
    box = ax.get_position(original=True)
    taken = points * _point(ax)
    ax.set_position(Bbox.from_bounds(box.x0, box.y0, max(box.width - taken, 0.3 * box.width), box.height))
    ax.set_in_layout(True)  # a later tight_layout may still move it


def _mark_chance(bar: Colorbar, first: float, last: float) -> None:
    """Draw lines at the smallest and the largest chance level, and "chance" on the side without ticks."""
    low, high = bar.mappable.get_clim()
    for level in {first, last}:
        if low <= level <= high:
            bar.ax.axhline(level, color="white", linewidth=2.6)
            bar.ax.axhline(level, color="black", linewidth=1.2)
    middle = (first + last) / 2
    place = float(np.clip(bar.norm(np.array(middle)), 0, 1))
    bar.ax.annotate(
        # A level outside the scale has no line, so its number is written.
        "chance" if low <= middle <= high else f"chance {_number(middle)}",
        (0, place),
        xycoords="axes fraction",
        xytext=(-2, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom" if place < 0.1 else "top" if place > 0.9 else "center",
        fontsize="small",
    )
