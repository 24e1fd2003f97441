"""The style of all pictures: drawn at the size at which they are printed, with no text too small to read there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

__all__ = ["COLUMN", "PAGE", "SMALLEST", "STYLE", "all_axes", "final_width", "house_style", "in_house_style"]

COLUMN = 3.25
"""Inches of one column of a paper with two."""
PAGE = 6.75
"""Inches of both columns and the gap between them."""
SMALLEST = 6.5
"""Points of the smallest text that can be read in print."""

# "small" is 0.833 of the font size, so that 8 points give 6.7; "x-small" would be below SMALLEST.
STYLE: dict[str, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "figure.titlesize": 9.0,
    "axes.linewidth": 0.6,
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "patch.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
    "legend.columnspacing": 1.0,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
# Ticks that matplotlib makes later, when it draws, read the style of that moment; these are kept with the axis instead.
TICKS = {"labelsize": "labelsize", "length": "major.size", "width": "major.width", "pad": "major.pad"}

Function = TypeVar("Function", bound=Callable[..., Any])


@contextmanager
def house_style(**changes: Any) -> Iterator[None]:
    """Draw in the style of this package: text of 7 and 8 points and thin lines, for figures 3.25 or 6.75 inches wide.

    The plotting functions use it for figures of their own. On axes that you pass they follow your settings of
    matplotlib; put this around your code to have the style there too.

    Parameters
    ----------
    **changes
        Settings of matplotlib that differ, with underscores for dots: ``house_style(font_family="serif")``.

    Yields
    ------
    None
        Afterwards the settings are as before.

    Raises
    ------
    KeyError
        If matplotlib has no such setting.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> with house_style():
    ...     figure, ax = plt.subplots(figsize=(3.25, 2.4), layout="constrained")
    >>> ax.xaxis.label.get_size()
    8.0
    >>> plt.close()
    """
    names = {name.replace(".", "_"): name for name in mpl.rcParams}
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise KeyError(f"matplotlib has no setting {unknown[0]!r}. Write its name with underscores, as `font_family`.")
    settings: Any = STYLE | {names[name]: value for name, value in changes.items()}
    with mpl.rc_context(settings):
        yield


def in_house_style(draw: Function) -> Function:
    """Decorator of a plotting function: the house style, if the function makes the figure itself.

    Parameters
    ----------
    draw : callable
        Takes ``ax`` or ``axes`` and returns the Axes.
    """

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("ax") if kwargs.get("axes") is None else kwargs["axes"]
        if given is not None:
            return draw(*args, **kwargs)
        with house_style():
            drawn = draw(*args, **kwargs)
            first = drawn if isinstance(drawn, Axes) else next(iter(drawn.flat))
            for ax in all_axes(first.figure.figure):
                keep_ticks(ax)
        return drawn

    return styled  # type: ignore[return-value]


def keep_ticks(ax: Axes) -> None:
    """Give the ticks that are not made yet the style of now.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes of a figure.
    """
    settings: Any = mpl.rcParams
    for name, axis in (("xtick", ax.xaxis), ("ytick", ax.yaxis)):
        known = axis.get_tick_params()
        fresh = {key: settings[f"{name}.{setting}"] for key, setting in TICKS.items() if key not in known}
        axis.set_tick_params(**fresh)


def all_axes(figure: Figure | SubFigure) -> list[Axes]:
    """All axes of a figure, also colour bars and insets, which are children of other axes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    """

    def below(ax: Artist) -> list[Axes]:
        children = [child for child in ax.get_children() if isinstance(child, Axes)]
        return [*children, *(deeper for child in children for deeper in below(child))]

    return [found for ax in figure.axes for found in (ax, *below(ax))]


def final_width(natural: float, slack: float = 1.2) -> float:
    """The width at which a figure is printed: one column if it nearly fits there, otherwise the page.

    Parameters
    ----------
    natural : float
        Inches that the picture would take by itself.
    slack : float
        How many times the column it may be, and is drawn smaller.

    Examples
    --------
    >>> final_width(3.4), final_width(9.0)
    (3.25, 6.75)
    """
    return COLUMN if natural <= slack * COLUMN else PAGE
