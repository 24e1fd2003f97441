"""Pictures of Gram matrices, which CKA compares, with the samples sorted by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from .canvas import new_axes
from .labels import LINE, font_size, length
from .scale import add_bar
from .style import COLUMN, PAGE, in_house_style
from .text import as_shown, plain, set_given

__all__ = ["centred_gram", "plot_gram", "plot_gram_pairs"]


def centred_gram(features: ArrayLike) -> NDArray[np.float64]:
    """Linear Gram matrix of centred features, divided by its Frobenius norm.

    The sum over the elementwise product of two such matrices is their biased CKA.

    Parameters
    ----------
    features : array (n, d)
        One row for each sample. Transposed logits give the P x P matrix over classes.

    Returns
    -------
    array (n, n)
        Symmetric, with norm 1; NaN if all rows are equal.

    Raises
    ------
    ValueError
        If `features` does not have two dimensions, or holds NaN or infinity.

    Examples
    --------
    >>> gram = centred_gram([[0.0], [2.0]])
    >>> gram.tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(
            f"`features` must have shape (n, d), got {x.shape}. Flatten maps first: x.reshape(len(x), -1)."
        )
    if not np.isfinite(x).all():
        raise ValueError("`features` holds NaN or infinity.")
    x = x - x.mean(axis=0)
    largest = np.abs(x).max(initial=0)
    x = x / largest if largest else x * np.nan
    gram = x @ x.T
    return gram / np.linalg.norm(gram)


@in_house_style
def plot_gram(
    gram: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    limit: float | None = None,
    cmap: Any = "RdBu_r",
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw a Gram matrix: samples sorted by class, lines between the classes, 0 in the middle of the colour scale.

    Parameters
    ----------
    gram : array (n, n)
        For example from :func:`centred_gram`.
    labels : array (n,), optional
        Class of each sample. Samples of one class keep their order. Without labels nothing is sorted.
    limit : float, optional
        The scale spans -limit to limit; entries beyond it have the colour of the end. By default `limit` is the 99th
        percentile of the absolute entries off the diagonal, because the diagonal is often far larger.
    cmap : str or matplotlib.colors.Colormap
        Diverging colours.
    title : str, optional
        Title of the axes.
    colorbar : bool
        Whether to draw the colour bar.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.imshow`.

    Returns
    -------
    matplotlib.axes.Axes
        The first sample is at the upper left, as in a written matrix.

    Raises
    ------
    ValueError
        If `gram` is not square, `labels` does not hold one for each sample, or `limit` is not positive.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_gram([[1.0, -1.0], [-1.0, 1.0]], labels=["dog", "cat"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['cat', 'dog']
    >>> plt.close()
    """
    matrix = np.asarray(gram, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"`gram` must have shape (n, n) with n at least 1, got {matrix.shape}.")
    if limit is not None and not limit > 0:
        raise ValueError(f"`limit` must be positive, got {limit}.")
    ends: NDArray[np.int64] | None = None
    if labels is not None:
        classes = np.asarray(labels)
        if classes.shape != (len(matrix),):
            raise ValueError(
                f"`labels` must hold one class for each of the {len(matrix)} samples, got {classes.shape}."
            )
        order = np.argsort(classes, kind="stable")
        matrix = matrix[np.ix_(order, order)]
        names, counts = np.unique(classes, return_counts=True)
        ends = np.cumsum(counts)
    if limit is None:
        limit = _typical(matrix)
    ax = new_axes((COLUMN, 2.8)) if ax is None else ax
    options = {"cmap": cmap, "vmin": -limit, "vmax": limit, "interpolation": "nearest"} | kwargs
    image = ax.imshow(matrix, **options)
    if colorbar:
        add_bar(ax, image, gap=4.0, label="entry of the Gram matrix")
    ax.set(xticks=[], yticks=[])
    if ends is not None:
        for end in ends[:-1]:
            ax.axhline(end - 0.5, color="black", linewidth=0.4)
            ax.axvline(end - 0.5, color="black", linewidth=0.4)
        centres = ends - counts / 2 - 0.5
        # Write as many names as have room. The classes are in order, so a reader can infer the others.
        room = length(ax.yaxis) / (LINE * font_size(ax.yaxis))
        step = max(1, int(np.ceil(len(names) / max(room, 1))))
        ax.set_yticks(centres[::step], [plain(as_shown(str(name))) for name in names[::step]])
        ax.tick_params(length=0)
    if title is not None:
        set_given(ax.title, title)
    return ax


def _typical(*matrices: NDArray[np.float64]) -> float:
    """Limit of a scale that shows the entries off the diagonal: their 99th percentile, or 1 if that is 0."""
    entries = [np.abs(m[~np.eye(len(m), dtype=bool)]) if len(m) > 1 else np.abs(m).ravel() for m in matrices]
    together = np.concatenate(entries)
    together = together[np.isfinite(together)]
    return (float(np.quantile(together, 0.99)) if together.size else 0.0) or 1.0


@in_house_style
def plot_gram_pairs(
    teacher_logits: ArrayLike,
    student_logits: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    axes: ArrayLike | None = None,
    **kwargs: Any,
) -> NDArray[np.object_]:
    """Draw the four Gram matrices of logits that RCKA compares: samples above, classes below.

    The two matrices of a row share one scale. The student's title gives their biased CKA.

    Parameters
    ----------
    teacher_logits, student_logits : array (N, P)
        Logits of the same samples and classes.
    labels : array (N,), optional
        Class of each sample, to sort the N x N matrices.
    class_names : sequence of P str, optional
        Names beside the P x P matrices.
    axes : array (2, 2) of matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure.
    **kwargs
        Passed to :func:`plot_gram`.

    Returns
    -------
    array (2, 2) of matplotlib.axes.Axes
        Rows: samples (N x N) and classes (P x P); columns: teacher and student.

    Raises
    ------
    ValueError
        If the logits differ in shape, or `axes`, `labels` or `class_names` do not fit.

    References
    ----------
    Zhou et al., arXiv 2401.11824, the figure of the RCKA framework.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> logits = np.random.default_rng(0).normal(size=(6, 3))
    >>> axes = plot_gram_pairs(logits, 2 * logits)
    >>> axes[0, 1].get_title()
    'student, 6 × 6 samples: CKA 1.000'
    >>> plt.close()
    """
    teacher, student = (np.asarray(logits, dtype=np.float64) for logits in (teacher_logits, student_logits))
    if teacher.shape != student.shape or teacher.ndim != 2:
        raise ValueError(
            "`teacher_logits` and `student_logits` must both have shape (samples, classes), "
            f"got {teacher.shape} and {student.shape}."
        )
    if axes is None:
        import matplotlib.pyplot as plt

        grid = plt.subplots(2, 2, figsize=(PAGE, 5.6), layout="constrained")[1]
    else:
        grid = np.array(axes, dtype=object)
        if grid.size != 4:
            raise ValueError(f"`axes` must hold four: samples and classes of teacher and student; got {grid.size}.")
        grid = grid.reshape(2, 2)
    names = None if class_names is None else np.asarray(class_names)
    if names is not None and names.shape != (teacher.shape[1],):
        raise ValueError(f"`class_names` must hold {teacher.shape[1]} names, got {names.shape}.")
    for row, (one, other, what) in enumerate(((teacher, student, "samples"), (teacher.T, student.T, "classes"))):
        grams = centred_gram(one), centred_gram(other)
        alignment = float((grams[0] * grams[1]).sum())
        count = len(one)
        limit = _typical(*grams)
        for column, (gram, name) in enumerate(zip(grams, ("teacher", "student"), strict=True)):
            title = f"{name}, {count} × {count} {what}" + (f": CKA {alignment:.3f}" if column else "")
            options = {"labels": None if row else labels, "limit": limit, "colorbar": bool(column)} | kwargs
            ax = plot_gram(gram, title=title, ax=grid[row, column], **options)
            ax.title.set_fontsize("medium")
            if row == 1 and names is not None:
                ax.set_yticks(range(count), [plain(as_shown(str(name))) for name in names], fontsize="small")
    return grid
