"""Shared by the tests of pictures: a matrix to draw, the texts of a drawn figure, a Gram matrix by loops."""

from itertools import pairwise

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cka_probe.plotting.cells import CellText
from cka_probe.plotting.style import COLUMN, PAGE, SMALLEST, all_axes
from cka_probe.similarity.matrix import SimilarityMatrix


def heatmap_matrix(rows, columns=None, *, shift=0.0, **kwargs):
    columns = rows if columns is None else columns
    distance = np.linspace(0, 1, rows)[:, None] - np.linspace(0, 1, columns)[None]
    values = np.exp(-((distance / 0.35) ** 2)) - shift
    return SimilarityMatrix(
        kwargs.pop("values", values),
        [f"layer{1 + 4 * i // rows}.{i}.conv1" for i in range(rows)],
        [f"layer{1 + 4 * i // columns}.{i}.conv2" for i in range(columns)],
        **kwargs,
    )


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def written(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def colour_bar(ax):
    (bar,) = ax.child_axes
    return bar


def brute_force_gram(x):
    """Centred linear Gram matrix HKH divided by its Frobenius norm, by loops."""
    n = len(x)
    gram = [[sum(a * b for a, b in zip(x[i], x[j], strict=True)) for j in range(n)] for i in range(n)]
    rows = [sum(gram[i]) / n for i in range(n)]
    mean = sum(rows) / n
    centred = np.array([[gram[i][j] - rows[i] - rows[j] + mean for j in range(n)] for i in range(n)])
    return centred / np.sqrt((centred**2).sum())


def all_texts(figure):
    """Every text of a figure that was drawn and can be seen."""
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible() and _shown(text)]


def _shown(text):
    if isinstance(text, CellText):
        return text.fitting_size() >= SMALLEST or text.force
    axes = text.axes
    return axes is None or (axes.get_visible() and (axes.axison or text in axes.texts or text is axes.title))


def check_picture(figure, widths=(COLUMN, PAGE)):
    """Final width, no text below 6.5 points, texts inside the figure, titles apart, legends beside the data."""
    figure.draw_without_rendering()
    width = figure.get_size_inches()[0]
    assert any(abs(width - wanted) < 0.01 for wanted in widths), f"{width} inches wide"
    axes = all_axes(figure)
    ticks = [label for ax in axes if ax.axison for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels()]
    seen = all_texts(figure)
    hidden = set(figure.findobj(Text)) - set(seen)
    owned = {label for ax in axes for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels(which="both")}
    others = [text for text in seen if text not in owned]
    texts = [text for text in [*others, *ticks] if text not in hidden and text.get_text().strip()]
    assert texts
    small = {text.get_text(): text.get_fontsize() for text in texts if text.get_fontsize() < SMALLEST - 0.01}
    assert not small, f"below {SMALLEST} points: {small}"
    for text in others:
        box = text.get_window_extent()
        inside = box.x0 >= -2 and box.y0 >= -2 and box.x1 <= figure.bbox.x1 + 2 and box.y1 <= figure.bbox.y1 + 2
        assert inside, f"cut at the edge: {text.get_text()!r}"
    titles = [ax.title for ax in axes if ax.title.get_text()]
    for i, one in enumerate(titles):
        for other in titles[i + 1 :]:
            overlap = Bbox.intersection(one.get_window_extent(), other.get_window_extent())
            assert overlap is None or overlap.width * overlap.height == 0, f"{one.get_text()!r}, {other.get_text()!r}"
    for ax in axes:
        legend = ax.get_legend()
        if legend is not None:
            box = legend.get_window_extent()
            clear = [name for name, points in _data(ax) if len(points) and box.count_contains(points)]
            assert not clear, f"the legend of {ax.get_title()!r} covers {clear}"


def _data(ax):
    """Name and places in pixels of all lines and points."""
    for line in ax.lines:
        if line.get_transform() is ax.transData or line.get_transform().contains_branch(ax.transData):
            points = line.get_xydata()
            if len(points) > 1 and line.get_linestyle() != "None":
                steps = np.linspace(0, 1, 20)[:, None]
                pixels = line.get_transform().transform(points)
                pixels = np.concatenate([a + steps * (b - a) for a, b in pairwise(pixels)])
            else:
                pixels = line.get_transform().transform(points)
            yield line.get_label(), pixels[np.isfinite(pixels).all(1)]
    for dots in ax.collections:
        offsets = np.asarray(dots.get_offsets())
        if isinstance(dots, PathCollection):
            yield dots.get_label(), dots.get_offset_transform().transform(offsets)


def share_of_ink(figure):
    """Fraction of the pixels of a figure that are not nearly white."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colours = np.asarray(canvas.buffer_rgba())[..., :3]
    return float((colours.min(-1) < 225).mean())
