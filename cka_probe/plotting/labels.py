"""Layer names beside a heatmap: short, and as many as can be read in the given space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, Locator

from .style import SMALLEST
from .text import as_shown, plain

__all__ = [
    "FULL",
    "LINE",
    "MOST",
    "LayerLocator",
    "font_size",
    "label_axis",
    "length",
    "root_figure",
    "shorten",
]

LINE = 1.15  # height of a line of text divided by its font size
MOST = 10
"""Names beside an axis that has no room for all: fewer than would fit, because depth is what the reader sees."""
FULL = 150  # characters of a name that is written in full; longer ones would leave no room for the picture


class LayerLocator(Locator):
    """Ticks at every layer, or at every 2nd, 3rd ... layer, so that their names do not overlap.

    The step is chosen at each drawing, so it stays right after the figure is resized, laid out or zoomed.

    Parameters
    ----------
    count : int
        Number of layers, at the positions 0, 1, ... count - 1.
    size : float
        Length of a name along the axis, in points.
    """

    def __init__(self, count: int, size: float) -> None:
        self.count = count
        self.size = size

    def __call__(self) -> list[float]:
        """Positions of the names in the current view of the axis."""
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Positions of the names between `vmin` and `vmax`."""
        assert self.axis is not None
        low, high = sorted((vmin, vmax))
        pitch = length(self.axis) / max(high - low, 1e-9)  # type: ignore[arg-type]
        # The font size was chosen so that names just fit. Without the 0.1 a small change of layout would drop names.
        step = max(1, math.ceil(self.size / max(pitch, 1e-9) - 0.1))
        if step > 1:
            step = max(step, math.ceil((high - low) / MOST))
        return [float(tick) for tick in range(0, self.count, step) if low <= tick <= high]


def length(axis: Axis) -> float:
    """Current length of the axis in points.

    Parameters
    ----------
    axis : matplotlib.axis.Axis
        ``ax.xaxis`` or ``ax.yaxis``.
    """
    box = axis.axes.get_window_extent()
    pixels = box.width if isinstance(axis, XAxis) else box.height
    return float(pixels) * 72 / root_figure(axis.axes).dpi


def root_figure(ax: Axes) -> Figure:
    """Top-level figure of the axes, also if they lie in a subfigure.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes in a figure.

    Raises
    ------
    ValueError
        If the axes were removed from their figure.
    """
    if ax.figure is None:
        raise ValueError("`ax` belongs to no figure any more. Pass axes that were not removed.")
    return ax.figure.figure


def font_size(axis: Axis) -> float:
    """Font size of the tick labels in points.

    Parameters
    ----------
    axis : matplotlib.axis.Axis
        ``ax.xaxis`` or ``ax.yaxis``.
    """
    default = mpl.rcParams["xtick.labelsize"] if isinstance(axis, XAxis) else mpl.rcParams["ytick.labelsize"]
    size = axis.get_tick_params().get("labelsize", default)
    return float(FontProperties(size=size).get_size_in_points())


def shorten(labels: Sequence[str]) -> tuple[list[str], str]:
    """Labels without the dotted path that all of them share, at most 30 characters each, and that path.

    Parameters
    ----------
    labels : sequence of str
        Layer names such as ``"backbone.body.layer1.0.conv1"``.

    Returns
    -------
    short : list of str
        For example ``"layer1.0.conv1"``. In longer names an ellipsis replaces the middle.
    prefix : str
        For example ``"backbone.body"``; ``""`` if the labels share no path.

    Examples
    --------
    >>> shorten(["net.body.conv1", "net.body.block.fc"])
    (['conv1', 'block.fc'], 'net.body')
    """
    paths = [label.split(".") for label in labels]
    shared = 0
    if len(paths) > 1:
        # The last part of a path is the layer's own name, which is always kept.
        for parts in zip(*(path[:-1] for path in paths), strict=False):
            if len(set(parts)) > 1:
                break
            shared += 1
    short = [".".join(path[shared:]) for path in paths]
    return [as_shown(label) for label in short], ".".join(paths[0][:shared]) if paths else ""


def label_axis(axis: Axis, labels: Sequence[str], largest: float, *, every: bool = False, few: bool = False) -> None:
    """Write the names along an axis in the largest size that fits; leave some out if no readable size fits.

    Parameters
    ----------
    axis : matplotlib.axis.Axis
        ``ax.xaxis`` or ``ax.yaxis``, with the layers at 0, 1, ...
    labels : sequence of str
        Names to write.
    largest : float
        Largest font size in points.
    every : bool
        Write every name, even if its size cannot be read.
    few : bool
        Write a few names, even if all have room.
    """
    pitch = length(axis) / max(len(labels), 1)
    size = min(largest, max(pitch / LINE, 1.0 if every else SMALLEST))
    room = size * LINE
    if isinstance(axis, XAxis):
        # A character is about 0.6 of the font size wide; one more leaves a space between neighbours.
        level = (max(map(len, labels), default=0) + 1) * 0.6 * largest
        if level <= pitch:
            size, room = largest, level
        axis.set_tick_params(rotation=0 if level <= pitch else 90)
    room = 0.0 if every else max(room, length(axis) / MOST) if few else room
    axis.set_tick_params(labelsize=size, length=2 if pitch < 2 * largest else 3.5)
    axis.set_major_locator(LayerLocator(len(labels), room))
    names = [plain(as_shown(label, FULL)) for label in labels]

    def name(position: float, _: int | None = None) -> str:
        index = round(position)
        return names[index] if abs(index - position) < 1e-6 and 0 <= index < len(names) else ""

    axis.set_major_formatter(FuncFormatter(name))
