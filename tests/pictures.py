"""Shared by the tests of pictures: a matrix to draw, the texts of a drawn figure, a Gram matrix by loops."""

import numpy as np

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
