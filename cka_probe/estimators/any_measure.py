"""p-values, scores and standard errors of any measure, computed again on permuted samples and on parts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from .calibration import Calibration, check_permutations
from .inference import Estimate, check_level
from .layer_matrix import cka_matrix
from .measures.catalogue import MEASURES
from .validation import Array

if TYPE_CHECKING:
    import numpy as np

__all__ = ["calibrate", "measure_matrix_with_error"]

Bar = Callable[[Iterable[int]], Iterable[int]]


def calibrate(
    measure: str,
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    permutations: int = 199,
    level: float = 0.05,
    seed: int | np.random.Generator = 0,
    progress: Bar | None = None,
    **options: Any,
) -> Calibration:
    """A measure of every pair of layers, calibrated by its own null: p-values, p-values of the maximum, and scores.

    The null has the samples of ``ys`` in random order; each permutation serves all pairs at once. It costs as much as
    the measure does ``permutations`` times.

    Parameters
    ----------
    measure : str
        One of ``MEASURES``, or "cka".
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` when left out.
    permutations : int
        Number of permutations, at least 19. The smallest p-value is 1 / (1 + permutations).
    level : float
        Of the score.
    seed : int or numpy.random.Generator
        Seed of the permutations.
    progress : callable, optional
        Wraps the iteration over permutations, for example in a bar.
    **options
        Options of the measure; for "cka" those of ``cka_matrix``.

    Returns
    -------
    Calibration
        Arrays (len(xs), len(ys)) of float64, NaN in the rows and columns of constant layers.

    Raises
    ------
    TypeError, ValueError
        As the measure, and if ``measure`` is not known, ``permutations`` is too small or ``level`` is not between 0
        and 1.

    References
    ----------
    Gröger, Wen, Brbić, Revisiting the Platonic Representation Hypothesis: An Aristotelian View, 2026
    (arXiv 2602.14486). Phipson and Smyth, Permutation p-values should never be zero, 2010. Westfall and Young,
    Resampling-Based Multiple Testing, 1993. docs/theory.md, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    >>> found = calibrate("procrustes", [x], [x + 0.1 * y, y], permutations=99)
    >>> found.p_value[0, 0] == 0.01, found.p_value[0, 1] > 0.05, found.score[0, 0] > 0.5
    (np.True_, np.True_, np.True_)
    """
    import numpy as np

    check_permutations(permutations)
    check_level(level)
    compute, best, distance = _measure(measure, options)
    value = compute(xs, ys)
    sides = xs if ys is None else ys
    generator = np.random.default_rng(seed)
    n = sides[0].shape[0]
    xp = array_namespace(*sides)
    steps: Iterable[int] = range(permutations)
    null = []
    for _ in steps if progress is None else progress(steps):
        order = xp.asarray(generator.permutation(n), device=device(sides[0]))
        null.append(compute(xs, [xp.take(x, order, axis=0) for x in sides]))
    # float32 features: values of equal permutations differ by rounding.
    single = any(x.dtype != xp.float64 for x in (*xs, *sides))
    return Calibration.of(
        value, null, best=best, distance=distance, level=level, rounding=64 * 2.0**-23 if single else 1e-12
    )


def measure_matrix_with_error(
    measure: str,
    xs: Sequence[Array],
    ys: Sequence[Array] | None = None,
    *,
    blocks: int = 20,
    level: float = 0.95,
    seed: int | np.random.Generator = 0,
    progress: Bar | None = None,
    **options: Any,
) -> Estimate:
    """A measure of every pair of layers with its standard error, by leaving out one block of samples at a time.

    The samples are dealt out at random to ``blocks`` blocks of equal size. It costs as much as the measure does
    ``blocks`` times.

    Parameters
    ----------
    measure : str
        One of ``MEASURES``, or "cka".
    xs : sequence of arrays (n, p_i)
        Features of the layers of one network.
    ys : sequence of arrays (n, q_j), optional
        Features of the layers of the other network; ``xs`` when left out.
    blocks : int
        Number of blocks, from 2 to n.
    level : float
        Coverage of the interval.
    seed : int or numpy.random.Generator
        Seed of the blocks.
    progress : callable, optional
        Wraps the iteration over blocks, for example in a bar.
    **options
        Options of the measure; for "cka" those of ``cka_matrix``.

    Returns
    -------
    Estimate
        Arrays (len(xs), len(ys)) of float64: the value for all samples, its error, and the interval by Student's t with
        blocks - 1 degrees of freedom. The error is that of the value at this number of samples: a measure that grows
        with fewer samples (CCA, biased CKA) has its bias still. The samples must be independent of each other.

    Raises
    ------
    TypeError, ValueError
        As the measure, and if ``measure`` is not known, ``blocks`` is not between 2 and n, or ``level`` is not between
        0 and 1.

    References
    ----------
    Tukey, Bias and confidence in not quite large samples, 1958. Shao and Wu, A general theory for jackknife variance
    estimation, Annals of Statistics 1989 (blocks for statistics that are not smooth). docs/theory.md, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 100, 3))
    >>> found = measure_matrix_with_error("procrustes", [x], [x + y])
    >>> bool(0 < found.standard_error[0, 0] < 0.1)
    True
    """
    import numpy as np

    check_level(level)
    compute, _, _ = _measure(measure, options)
    value = compute(xs, ys)
    n = xs[0].shape[0]
    if isinstance(blocks, bool) or not isinstance(blocks, Integral):
        raise TypeError(f"`blocks` must be an int, got {blocks!r}.")
    if not 2 <= blocks <= n:
        raise ValueError(f"`blocks` must be between 2 and the number of samples, {n}, got {blocks}.")
    xp = array_namespace(*xs)
    order = np.random.default_rng(seed).permutation(n)
    parts = range(int(blocks))
    without = []
    for block in parts if progress is None else progress(parts):
        kept = np.sort(np.delete(order, np.arange(block, n, blocks)))
        places = xp.asarray(kept, device=device(xs[0]))
        sides = [None if side is None else [xp.take(x, places, axis=0) for x in side] for side in (xs, ys)]
        try:
            without.append(compute(*sides))
        except ValueError as error:
            raise ValueError(
                f"With one of the {blocks} blocks left out, {len(kept)} samples remain. {error}"
            ) from error
    left_out = xp.stack(without)
    spread = left_out - xp.mean(left_out, axis=0)
    error = xp.sqrt((blocks - 1) / blocks * xp.sum(spread * spread, axis=0))
    return Estimate.of(value, error, level, int(blocks) - 1)


def _measure(
    measure: str, options: dict[str, Any]
) -> tuple[Callable[[Sequence[Array], Sequence[Array] | None], Array], float, bool]:
    """A function of two lists of layers, the value of equal layers, and whether it is a distance."""
    if measure == "cka":
        return lambda xs, ys: cka_matrix(xs, ys, **options), 1.0, False
    if measure not in MEASURES:
        raise ValueError(f'No measure is called {measure!r}. Known are "cka", {", ".join(map(repr, MEASURES))}.')
    found = MEASURES[measure]
    found.check_options(options)
    distance = found.kind == "distance"
    best = found.limits[0] if distance else found.limits[1]
    return lambda xs, ys: found.matrix(xs, ys, **options).values, best, distance
