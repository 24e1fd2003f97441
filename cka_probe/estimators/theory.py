"""CKA and MMD of two layers: the decomposition of CKA, and every MMD that CKA bounds (docs/theory.md, section 7).

Zhou et al. write CKA as a constant minus an upper bound of an MMD. In exact form: Khat and Lhat (n, n) are the centred
Gram matrices divided by their Frobenius norms. Their scaled rows sqrt(n) Khat_i and sqrt(n) Lhat_i are two clouds of n
points in R^n, and CKA = 1 - (1/2) (mean squared distance of paired rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from types import ModuleType
from typing import NamedTuple

from array_api_compat import array_namespace

from .alignment import normalized_gram
from .corridor import Corridor, corridor_of
from .hsic import hsic_from_grams
from .kernels import RBF, Kernel, Linear, center_features, given_kernel
from .measures.layer_mmd import cloud, clouds_mmd_squared
from .validation import Array, check_pair

__all__ = ["CONJECTURE", "CKAMMDBounds", "Statement", "cka_mmd_bounds"]

CONJECTURE = "conjecture (not proved)"
VACUOUS = "linear MMD^2 = 0 identically (centred rows have mean 0): no evidence that CKA minimises an MMD"


class Statement(NamedTuple):
    """One statement of docs/theory.md, section 7: ``lower <= value <= upper``; None where there is no bound."""

    name: str
    claim: str
    value: Array
    lower: Array | float | None
    upper: Array | float | None
    proved: bool


@dataclass(frozen=True, eq=False, repr=False)
class CKAMMDBounds:
    """Every term of the theory of CKA and MMD for one pair of layers (or a stack of pairs), as arrays (...) of float64.

    The ending ``_uncentred`` marks terms of Gram matrices that are divided by their norms without centring (Kbar and
    Lbar). Each MMD is the biased V-statistic between the two clouds of scaled rows. The Gaussian kernel is
    exp(-|u - v|^2 / (2 tau^2)), the quadratic kernel (u . v)^2.

    Attributes
    ----------
    tau : float
        Bandwidth of the Gaussian kernel on the scaled rows, whose mean squared norm is 1.
    samples : int
        Number of samples n.
    cka, cka_uncentred : array
        Biased CKA c, and c0, the same without centring.
    paired_distance, paired_distance_uncentred : array
        Mean squared distance of paired rows, ||Khat - Lhat||_F^2 = 2 (1 - c).
    decomposition_residual, decomposition_residual_uncentred : array
        c - (1 - paired_distance / 2), which is 0 up to rounding.
    gaussian_mmd_squared, gaussian_mmd_squared_uncentred : array
        Squared MMD with the Gaussian kernel (T1, T4, T5).
    t1_bound, t1_bound_uncentred : array
        Bound of T1, 2 (1 - exp(-(1 - c) / tau^2)).
    t1_linear_bound, t1_linear_bound_uncentred : array
        Weaker bound of T1, 2 (1 - c) / tau^2.
    linear_mmd_squared : array
        Squared MMD with the linear kernel: always 0 up to rounding, so it has no bound.
    linear_mmd_squared_uncentred : array
        Squared MMD with the linear kernel, without centring (T2).
    t2_bound_uncentred : array
        Bound of T2, 2 (1 - c0).
    t2_ratio_uncentred : array
        Squared MMD of T2 divided by its bound, from 0 to 1. It is 1 if and only if Kbar - Lbar is proportional to 11',
        and NaN if both are 0.
    quadratic_mmd_squared, quadratic_mmd_squared_uncentred : array
        Squared MMD with the quadratic kernel, Q of T3.
    t3_lower, t3_upper, t3_lower_uncentred, t3_upper_uncentred : array
        Bounds of T3, 4 (1 - c)^2 / rank and 2 (1 - c^2).
    t3_spectral_lower, t3_spectral_lower_uncentred : array
        Sharper lower bound ||(Khat - Lhat)^2||_F^2, from which ``t3_lower`` follows.
    rank, rank_uncentred : array
        Rank of Khat - Lhat.
    t4_bound : array
        Bound of T4, (1 - c) (3 + c + min(1, 2 (1 - c))) / tau^4. It needs centring.
    t4_linear_bound : array
        Weaker bound of T4, 4.5 (1 - c) / tau^4; below ``t1_linear_bound`` if tau^2 > 2.25.
    conjectured_bound : array
        (1 - c^2) / tau^4. A CONJECTURE: no violation was found, but it is not proved.
    hsic : array
        tr(KHLH) / n^2 of the given kernels, in their units (T6).
    hsic_norm : array
        sqrt(hsic(x, x) hsic(y, y)), so that ``hsic = cka * hsic_norm``.
    hsic_mmd_squared : array
        Squared MMD between the joint sample and the product of its marginals, with the product of both kernels (T6).
        Equals ``hsic``.
    """

    tau: float
    samples: int
    cka: Array
    cka_uncentred: Array
    paired_distance: Array
    paired_distance_uncentred: Array
    decomposition_residual: Array
    decomposition_residual_uncentred: Array
    gaussian_mmd_squared: Array
    gaussian_mmd_squared_uncentred: Array
    t1_bound: Array
    t1_bound_uncentred: Array
    t1_linear_bound: Array
    t1_linear_bound_uncentred: Array
    linear_mmd_squared: Array
    linear_mmd_squared_uncentred: Array
    t2_bound_uncentred: Array
    t2_ratio_uncentred: Array
    quadratic_mmd_squared: Array
    quadratic_mmd_squared_uncentred: Array
    t3_lower: Array
    t3_lower_uncentred: Array
    t3_upper: Array
    t3_upper_uncentred: Array
    t3_spectral_lower: Array
    t3_spectral_lower_uncentred: Array
    rank: Array
    rank_uncentred: Array
    t4_bound: Array
    t4_linear_bound: Array
    conjectured_bound: Array
    hsic: Array
    hsic_norm: Array
    hsic_mmd_squared: Array

    def to_dict(self) -> dict[str, float]:
        """All terms by name as floats, for example for one row of a table.

        Raises
        ------
        ValueError
            If the terms belong to a stack of pairs.
        """
        if self.cka.ndim:
            raise ValueError(
                f"These terms belong to a stack of {tuple(self.cka.shape)} pairs. Pass one pair to `cka_mmd_bounds`."
            )
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}

    def statements(self) -> tuple[Statement, ...]:
        """The statements of docs/theory.md, section 7, each with its value and bounds; the conjecture is marked."""
        half = 1 - self.paired_distance / 2
        half0 = 1 - self.paired_distance_uncentred / 2
        gauss, gauss0 = self.gaussian_mmd_squared, self.gaussian_mmd_squared_uncentred
        q, q0 = self.quadratic_mmd_squared, self.quadratic_mmd_squared_uncentred
        linear, linear0 = self.linear_mmd_squared, self.linear_mmd_squared_uncentred
        t2 = "linear MMD^2 <= 2 (1-c0), equal iff Kbar - Lbar is proportional to 11'"
        t3, t3_0 = (f"4 (1-{c})^2 / rank <= quadratic MMD^2 <= 2 (1 - {c}^2)" for c in ("c", "c0"))
        t4 = "Gaussian MMD^2 <= (1-c) (3 + c + min(1, 2(1-c))) / tau^4"
        t6 = "tr(KHLH)/n^2 = MMD^2 of the joint and the product of marginals"
        rows = (
            ("decomposition", "CKA = 1 - |Khat - Lhat|^2 / 2", self.cka, half, half),
            ("decomposition, un-centred", "c0 = 1 - |Kbar - Lbar|^2 / 2", self.cka_uncentred, half0, half0),
            ("T1", "Gaussian MMD^2 <= 2 (1 - exp(-(1-c)/tau^2))", gauss, 0.0, self.t1_bound),
            ("T1, un-centred", "Gaussian MMD^2 <= 2 (1 - exp(-(1-c0)/tau^2))", gauss0, 0.0, self.t1_bound_uncentred),
            ("T2, un-centred", t2, linear0, 0.0, self.t2_bound_uncentred),
            ("T2, centred: vacuous", VACUOUS, linear, 0.0, 0.0),
            ("T3", t3, q, self.t3_lower, self.t3_upper),
            ("T3, un-centred", t3_0, q0, self.t3_lower_uncentred, self.t3_upper_uncentred),
            ("T4", t4, gauss, 0.0, self.t4_bound),
            ("T5", "Gaussian MMD^2 = 0 iff CKA = 1", gauss, 0.0, None),
            ("T6", t6, self.hsic, self.hsic_mmd_squared, self.hsic_mmd_squared),
            (CONJECTURE, "Gaussian MMD^2 <= (1 - c^2) / tau^4", gauss, 0.0, self.conjectured_bound),
        )
        return tuple(
            Statement(name, claim, value, lower, upper, name != CONJECTURE) for name, claim, value, lower, upper in rows
        )

    def violations(self, *, rounding: float = 1e-12) -> tuple[str, ...]:
        """Names of the statements that do not hold for these numbers; empty if all hold.

        Parameters
        ----------
        rounding : float
            Tolerance beyond a bound, in units of 1, and for T6 in units of ``hsic_norm``.

        Returns
        -------
        tuple of str
            Terms that are NaN (a side is constant) count as no violation.
        """
        xp = array_namespace(self.cka)
        units = {"T6": xp.where(self.hsic_norm > 0, self.hsic_norm, xp.full_like(self.hsic_norm, xp.nan))}
        return tuple(s.name for s in self.statements() if _broken(s, rounding * units.get(s.name, 1.0)))

    def __str__(self) -> str:
        """One line for each statement; for a stack, only its shape."""
        if self.cka.ndim:
            return f"CKA and MMD: {tuple(self.cka.shape)} pairs, n = {self.samples}, tau = {self.tau:g}"
        lines = [f"CKA and MMD (n = {self.samples}, tau = {self.tau:g})"]
        for s in self.statements():
            low, value, high = (" " * 10 if v is None else f"{float(v):10.3g}" for v in (s.lower, s.value, s.upper))
            lines.append(f"{s.name:26} {low} <= {value} <= {high}   {s.claim}")
        return "\n".join(lines)

    __repr__ = __str__


def _broken(statement: Statement, slack: Array | float) -> bool:
    value = statement.value
    xp = array_namespace(value)
    below = statement.lower is not None and bool(xp.any(value < statement.lower - slack))
    return below or (statement.upper is not None and bool(xp.any(value > statement.upper + slack)))


class _Terms(NamedTuple):
    """Terms of the normalised Gram matrices, centred or not; ``gaussian`` and ``linear`` are squared MMDs."""

    corridor: Corridor
    paired: Array
    gaussian: Array
    linear: Array


def _terms(xp: ModuleType, x: Array, y: Array, kernel: Kernel, kernel_y: Kernel, tau: float, centring: str) -> _Terms:
    n = x.shape[-2]
    unit_x = normalized_gram(x, kernel, centring=centring)
    unit_y = normalized_gram(y, kernel_y, centring=centring)
    difference = unit_x - unit_y
    sums = xp.sum(difference, axis=-1)
    return _Terms(
        corridor=corridor_of(unit_x, unit_y),
        paired=xp.sum(difference * difference, axis=(-2, -1)),
        gaussian=clouds_mmd_squared(*(cloud(RBF(bandwidth=tau), math.sqrt(n) * unit) for unit in (unit_x, unit_y))),
        linear=xp.sum(sums * sums, axis=-1) / n,
    )


def _hsic_terms(xp: ModuleType, x: Array, y: Array, kernel: Kernel, kernel_y: Kernel) -> tuple[Array, Array, Array]:
    """``hsic``, ``hsic_norm`` and ``hsic_mmd_squared`` of ``CKAMMDBounds``; the last from the raw Gram matrices."""
    n = x.shape[-2]
    grams = []
    for features, k in ((x, kernel), (y, kernel_y)):
        z = xp.astype(features, xp.float64)
        # A shift of linear features and a constant in the kernel cancel in the MMD. Removed here, they cost no digits.
        gram = k(center_features(z) if isinstance(k, Linear) else z)
        grams.append(gram - xp.mean(gram, axis=(-2, -1), keepdims=True))
    gram_x, gram_y = grams
    rows_x, rows_y = xp.mean(gram_x, axis=-1), xp.mean(gram_y, axis=-1)
    joint = xp.mean(gram_x * gram_y, axis=(-2, -1))
    product = xp.mean(rows_x, axis=-1) * xp.mean(rows_y, axis=-1)
    mmd_squared = joint + product - 2 * xp.mean(rows_x * rows_y, axis=-1)
    cross, self_x, self_y = (
        hsic_from_grams(left, right, estimator="biased") * ((n - 1) / n) ** 2
        for left, right in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))
    )
    return cross, xp.sqrt(self_x) * xp.sqrt(self_y), mmd_squared


def cka_mmd_bounds(
    x: Array, y: Array, *, tau: float = 1.0, kernel: Kernel | None = None, kernel_y: Kernel | None = None
) -> CKAMMDBounds:
    """Every term of the theory of CKA and MMD for two layers: CKA, the MMDs that it bounds, and the bounds.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2.
    y : array (..., n, q)
        Features of the same samples.
    tau : float
        Bandwidth of the Gaussian kernel on the scaled rows, whose mean squared norm is 1.
    kernel : Kernel, optional
        Positive semi-definite kernel of ``x``, and of ``y`` unless ``kernel_y`` is given. Linear by default.
    kernel_y : Kernel, optional
        Kernel of ``y``.

    Returns
    -------
    CKAMMDBounds
        The named terms, computed in float64. All centred terms are NaN where one side is constant.

    Raises
    ------
    TypeError
        As ``cka``, and if ``tau`` is not a number.
    ValueError
        As ``cka``, and if ``tau`` is not positive and finite.

    Notes
    -----
    The cost is a few products of n x n matrices and two eigenvalue problems: 0.4 s at n = 512 on one CPU core.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, arXiv 2401.11824.
    Gretton et al., A Kernel Two-Sample Test, JMLR 2012, section 7 (T6). docs/theory.md, section 7.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    >>> terms = cka_mmd_bounds(x, y, tau=2.0)
    >>> terms.violations()
    ()
    >>> bool(terms.gaussian_mmd_squared < terms.t4_bound < terms.t1_bound)
    True
    """
    if isinstance(tau, bool) or not isinstance(tau, Real):
        raise TypeError(f"`tau` must be a number, got {type(tau).__name__}. It is the bandwidth on the scaled rows.")
    if not 0 < tau < math.inf:
        raise ValueError(f"`tau` must be positive and finite, got {tau!r}. It is the bandwidth on the scaled rows.")
    xp, x, y = check_pair(x, y)
    kernel = given_kernel(kernel)
    kernel_y = given_kernel(kernel_y, "kernel_y", kernel)
    centred = _terms(xp, x, y, kernel, kernel_y, tau, "biased")
    raw = _terms(xp, x, y, kernel, kernel_y, tau, "none")
    # 1 - c is taken from the paired distance, so that no digits are lost when c is near 1.
    c, gap, gap0 = centred.corridor.cka, centred.paired / 2, raw.paired / 2
    t2_bound = 2 * gap0
    apart = t2_bound > 0
    ratio = xp.where(
        apart, raw.linear / xp.where(apart, t2_bound, xp.ones_like(t2_bound)), xp.full_like(t2_bound, xp.nan)
    )
    hsic, hsic_norm, hsic_mmd = _hsic_terms(xp, x, y, kernel, kernel_y)
    return CKAMMDBounds(
        tau=float(tau),
        samples=x.shape[-2],
        cka=c,
        cka_uncentred=raw.corridor.cka,
        paired_distance=centred.paired,
        paired_distance_uncentred=raw.paired,
        decomposition_residual=c - (1 - gap),
        decomposition_residual_uncentred=raw.corridor.cka - (1 - gap0),
        gaussian_mmd_squared=centred.gaussian,
        gaussian_mmd_squared_uncentred=raw.gaussian,
        t1_bound=-2 * xp.expm1(-gap / tau**2),
        t1_bound_uncentred=-2 * xp.expm1(-gap0 / tau**2),
        t1_linear_bound=2 * gap / tau**2,
        t1_linear_bound_uncentred=2 * gap0 / tau**2,
        linear_mmd_squared=centred.linear,
        linear_mmd_squared_uncentred=raw.linear,
        t2_bound_uncentred=t2_bound,
        t2_ratio_uncentred=ratio,
        quadratic_mmd_squared=centred.corridor.mmd_squared,
        quadratic_mmd_squared_uncentred=raw.corridor.mmd_squared,
        t3_lower=centred.corridor.lower,
        t3_lower_uncentred=raw.corridor.lower,
        t3_upper=centred.corridor.upper,
        t3_upper_uncentred=raw.corridor.upper,
        t3_spectral_lower=centred.corridor.spectral_lower,
        t3_spectral_lower_uncentred=raw.corridor.spectral_lower,
        rank=centred.corridor.rank,
        rank_uncentred=raw.corridor.rank,
        t4_bound=gap * (3 + c + xp.where(2 * gap < 1, 2 * gap, xp.ones_like(gap))) / tau**4,
        t4_linear_bound=4.5 * gap / tau**4,
        conjectured_bound=gap * (1 + c) / tau**4,
        hsic=hsic,
        hsic_norm=hsic_norm,
        hsic_mmd_squared=hsic_mmd,
    )
