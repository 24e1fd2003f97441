"""How much of the distances between models a property explains, and a permutation test of it (PERMANOVA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Permanova", "permanova"]


class Permanova(NamedTuple):
    """Result of ``permanova``.

    Attributes
    ----------
    r2 : float
        Share of the squared distances that the property explains, at most 1; below 0 is possible for distances that
        belong to no points of a Euclidean space.
    f : float
        Pseudo-F: explained over unexplained, each divided by its degrees of freedom.
    p_value : float
        Share of the permutations, the given order among them, with an F at least as large.
    """

    r2: float
    f: float
    p_value: float


def permanova(
    distances: ArrayLike, values: Sequence[Any], *, continuous: bool = False, permutations: int = 999, seed: int = 0
) -> Permanova:
    """Test whether models with the same value of a property are nearer to each other than by chance.

    Parameters
    ----------
    distances : array (n, n)
        Symmetric, with a diagonal of zeros; for example ``Atlas.distances()``.
    values : sequence of n
        The property of each model. Each different value is a group.
    continuous : bool
        Whether the values are numbers, to whose line the models are fitted, in place of groups.
    permutations : int
        Number of random permutations.
    seed : int
        Of the permutations.

    Returns
    -------
    Permanova
        ``r2``, ``f``, ``p_value``. Properties are tested one at a time: the shares of properties that go together
        overlap.

    Raises
    ------
    ValueError
        If the distances are not square, symmetric and finite, the numbers of values and models differ, all values are
        the same or all are different, or ``permutations`` is below 1.

    References
    ----------
    Anderson, A new method for non-parametric multivariate analysis of variance, Austral Ecology 26, 2001; McArdle,
    Anderson, Fitting multivariate models to community data, Ecology 82, 2001.

    Examples
    --------
    >>> x = np.array([0.0, 0.1, 5.0, 5.1, 0.2, 5.2])
    >>> found = permanova(abs(x[:, None] - x), ["a", "a", "b", "b", "a", "b"])
    >>> round(found.r2, 3), found.p_value
    (0.999, 0.107)
    """
    d = np.asarray(distances, dtype=np.float64)
    n = len(d)
    if d.shape != (n, n) or not np.isfinite(d).all() or not np.allclose(d, d.T) or np.diag(d).any():
        raise ValueError(
            "`distances` must be a square, symmetric matrix of finite numbers with zeros on its diagonal, got the "
            f"shape {d.shape}{'' if np.isfinite(d).all() else ' with NaN or infinity'}."
        )
    if len(values) != n:
        raise ValueError(f"There are {n} models and {len(values)} values.")
    if permutations < 1:
        raise ValueError(f"`permutations` must be at least 1, got {permutations}.")
    if continuous:
        design = np.asarray(values, dtype=np.float64)[:, None]
        if not np.isfinite(design).all():
            raise ValueError("`values` holds NaN or infinity.")
    else:
        _, groups = np.unique(np.asarray([str(value) for value in values]), return_inverse=True)
        design = np.eye(groups.max() + 1)[groups]
    centred = design - design.mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    basis = left[:, strengths > 1e-9 * max(strengths.max(), 1e-300)]
    degrees = basis.shape[1] if strengths.max() > 1e-12 else 0
    if degrees == 0:
        raise ValueError("All models have the same value, so it explains nothing.")
    if degrees >= n - 1:
        raise ValueError("Each model has a value of its own, so nothing is left to compare with.")
    squares = -(d**2) / 2
    gram = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    total = np.trace(gram)

    def explained(order: np.ndarray) -> float:
        own = basis[order]
        return float(np.sum(own * (gram @ own)))

    rng = np.random.default_rng(seed)
    found = explained(np.arange(n))
    # F grows with the explained sum, so the sums are compared; equal ones differ by rounding.
    others = sum(bool(explained(rng.permutation(n)) >= found - 1e-12 * abs(total)) for _ in range(permutations))
    rest = (total - found) / (n - 1 - degrees)
    f = found / degrees / rest if rest > 0 else np.inf
    return Permanova(float(found / total), float(f), (1 + others) / (1 + permutations))
