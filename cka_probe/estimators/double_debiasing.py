"""Linear CKA from few samples and few features, without the bias of either.

HSIC_1 removes the bias of few samples. But its self term pairs each recorded feature with itself. If only few of many
features are recorded (electrodes in a brain, a random subset of channels), this makes CKA too small. Here the features
are a random sample too: self terms use pairs of different features only.
"""

from __future__ import annotations

from types import ModuleType

from array_api_compat import array_namespace

from .alignment import ratio
from .closed_form import without_each
from .hsic import CentredFeatures, scaled_features
from .inference import Estimate, check_level
from .validation import Array, check_pair

__all__ = ["cka_double_debiased"]


def cka_double_debiased(x: Array, y: Array, *, level: float = 0.95) -> Estimate:
    """Linear CKA of two whole layers from random samples of their features, with error and interval.

    Use it when x and y hold few of many features, drawn at random and independently. When they hold all features of
    the layers, use ``cka``.

    Parameters
    ----------
    x : array (..., n, p)
        n >= 5 samples of p >= 3 features on one scale; each column is a feature drawn at random from the layer.
    y : array (..., n, q)
        q >= 3 features of the same samples. It must not contain features of ``x``: a layer with itself gives more
        than 1.
    level : float
        Coverage of the interval.

    Returns
    -------
    Estimate
        Arrays (...) of float64. The value may be above 1. The error covers the choice of samples and of features, from
        a jackknife over each. The interval uses Student's t with Satterthwaite's degrees of freedom. NaN where a self
        term is not positive: the features of that side have too little in common.

    Raises
    ------
    TypeError, ValueError
        As ``cka``, and if there are fewer than 5 samples or 3 features, or ``level`` is not between 0 and 1.

    References
    ----------
    Chun, Canatar, Chung, Lee, Estimating Neural Representation Alignment from Sparsely Sampled Inputs and Features,
    2025. docs/theory.md, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(200, 5))  # both layers hold z; x and y are 20 random features of each
    >>> x, y = z @ rng.normal(size=(5, 20)), z @ rng.normal(size=(5, 20))
    >>> found = cka_double_debiased(x, y)
    >>> bool(found.low < 1 < found.high)
    True
    """
    check_level(level)
    xp, x, y = check_pair(x, y, minimum=5)
    for features, name in ((x, "x"), (y, "y")):
        if features.shape[-1] < 3:
            raise ValueError(f"`{name}` has {features.shape[-1]} features, but at least 3 are needed. Use `cka`.")
    left, right = (_SampledLayer(xp, xp.astype(side, xp.float64)) for side in (x, y))
    n, p, q = left.n, left.p, right.p
    cross_x, cross_y = left.columns.inner(right.whole), right.columns.inner(left.whole)  # (..., p) and (..., q)
    cross = xp.sum(cross_x, axis=-1)
    value = ratio(xp, cross / (p * q), left.self_term, right.self_term, left.floor, right.floor)

    floors = left.floor[..., None], right.floor[..., None]
    shares = left.samples.row_inner(right.samples)
    by_sample = ratio(
        xp,
        without_each(cross[..., None], shares, 0.0, n, "unbiased") / (p * q),
        left.self_without_each_sample(),
        right.self_without_each_sample(),
        *floors,
    )
    by_feature_x = ratio(
        xp,
        (cross[..., None] - cross_x) / ((p - 1) * q),
        left.self_without_each_feature(),
        right.self_term[..., None],
        *floors,
    )
    by_feature_y = ratio(
        xp,
        (cross[..., None] - cross_y) / (p * (q - 1)),
        left.self_term[..., None],
        right.self_without_each_feature(),
        *floors,
    )
    variances = [_jackknife_variance(xp, values) for values in (by_sample, by_feature_x, by_feature_y)]
    total = variances[0] + variances[1] + variances[2]
    squares = variances[0] ** 2 / (n - 1) + variances[1] ** 2 / (p - 1) + variances[2] ** 2 / (q - 1)
    degrees = total * total / xp.where(squares > 0, squares, xp.ones_like(squares))
    return Estimate.of(value, xp.sqrt(total), level, degrees)


def _jackknife_variance(xp: ModuleType, values: Array) -> Array:
    count = values.shape[-1]
    spread = values - xp.mean(values, axis=-1, keepdims=True)
    return (count - 1) / count * xp.sum(spread * spread, axis=-1)


class _SampledLayer:
    """The recorded features of one layer, both together and one by one as sides of inner products.

    ``with_others`` (..., p) is the sum of the inner products of each feature with all others, ``total`` (...) the sum
    of these, ``self_term`` (...) the mean over pairs of different features.
    """

    def __init__(self, xp: ModuleType, x: Array) -> None:
        z, _ = scaled_features(x)
        one = xp.ones(z.shape[:-2], dtype=z.dtype, device=z.device)
        self.n, self.p = z.shape[-2:]
        self.samples = CentredFeatures(z, one, self.n, True)
        self.whole = CentredFeatures(z[..., None, :, :], one, self.n, True)  # broadcasts over the columns
        self.columns = CentredFeatures(xp.matrix_transpose(z)[..., None], one, self.n, True)
        of_column = self.columns.inner(self.columns)
        self.with_others = self.columns.inner(self.whole) - of_column
        self.total = xp.sum(self.with_others, axis=-1)
        self.self_term = self.total / (self.p * (self.p - 1))
        # A self term is a difference of two sums. Below this floor it is only their rounding.
        spread = xp.sum(z * z, axis=(-2, -1))
        self.floor = 16 * float(xp.finfo(z.dtype).eps) * spread * spread / (self.n * self.p * self.p)

    def self_without_each_sample(self) -> Array:
        xp = array_namespace(self.total)
        shares = self.samples.row_inner(self.samples) - xp.sum(self.columns.row_inner(self.columns), axis=-2)
        return without_each(self.total[..., None], shares, 0.0, self.n, "unbiased") / (self.p * (self.p - 1))

    def self_without_each_feature(self) -> Array:
        return (self.total[..., None] - 2 * self.with_others) / ((self.p - 1) * (self.p - 2))
