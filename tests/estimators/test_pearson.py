"""Upper tails of the Pearson distributions against scipy and against the integral of their differential equation."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, stats

from cka_probe.estimators.pearson import pearson3_sf, pearson_sf

Z = np.array([-2.5, -1.0, -0.3, 0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 7.0, 12.0])

SHAPES = {
    "VI, near III": (1.0, 1.501), "VI": (1.0, 1.8), "near V": (1.0, 1.9335),
    "IV": (1.0, 3.0), "IV, of a language model": (2.23, 15.6), "IV, of one batch": (4.28, 51.1),
    "IV, heavy": (0.5, 80.0), "t": (0.0, 2.0), "near normal": (0.02, 0.002),
}  # fmt: skip


def by_the_equation(z, skewness, excess):
    """P(Z > z) where f'/f = -(x + c1) / (c0 + c1 x + c2 x^2), which defines the system; moments of f are checked."""
    b1, b2 = skewness**2, 3 + excess
    scale = 10 * b2 - 12 * b1 - 18
    c0, c1, c2 = (4 * b2 - 3 * b1) / scale, skewness * (b2 + 3) / scale, (2 * b2 - 3 * b1 - 6) / scale
    roots = np.roots([c2, c1, c0])
    start = max(roots.real) if np.isreal(roots).all() else -np.inf
    mode = -c1

    def log_density(x):
        """The integral of the equation from the mode to x, in closed form by partial fractions over complex roots."""
        total = sum(
            -(root + c1) / (c2 * (root - other)) * (np.log(x + 0j - root) - np.log(mode + 0j - root))
            for root, other in ((roots[0], roots[1]), (roots[1], roots[0]))
        )
        return total.real

    def mass(f, a, b):
        cuts = [a, *(c for c in (mode - 3, mode - 0.5, mode, mode + 0.5, mode + 3, mode + 20) if a < c < b), b]
        return sum(
            integrate.quad(f, low, high, epsabs=0, epsrel=1e-11, limit=400)[0] for low, high in itertools.pairwise(cuts)
        )

    whole = mass(lambda x: np.exp(log_density(x)), start, np.inf)
    for power, expected in ((1, 0.0), (2, 1.0), (3, skewness), (4, b2)):
        found = mass(lambda x, k=power: x**k * np.exp(log_density(x)), start, np.inf) / whole
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    return np.array([mass(lambda x: np.exp(log_density(x)), max(one, start), np.inf) / whole for one in z])


@pytest.mark.parametrize("name", SHAPES)
def test_four_moments(name):
    shape = SHAPES[name]
    expected = by_the_equation(Z, *shape)
    assert_allclose(pearson_sf(Z, *shape), expected, rtol=1e-7, atol=1e-200)
    mirrored = pearson_sf(-Z, -shape[0], shape[1])
    assert_allclose(mirrored, 1 - expected, rtol=1e-7, atol=1e-12)


def test_a_t_distribution():
    """Excess 6 / (degrees - 4)."""
    degrees = 9
    deviation = np.sqrt(degrees / (degrees - 2))
    assert_allclose(pearson_sf(Z, 0.0, 6 / (degrees - 4)), stats.t(degrees).sf(Z * deviation), rtol=1e-10)


@pytest.mark.parametrize("a", [0.3, 2.0, 40.0])
def test_a_beta_distribution_of_the_second_kind(a):
    """Type VI; its density has no bound where a < 1."""
    one = stats.betaprime(a, 9.0)
    mean, variance, skewness, excess = (float(m) for m in one.stats("mvsk"))
    expected = one.sf(mean + Z * np.sqrt(variance))
    assert_allclose(pearson_sf(Z, skewness, excess), expected, rtol=1e-9)
    assert_allclose(pearson_sf(-Z, -skewness, excess), 1 - expected, rtol=1e-7, atol=1e-15)


def test_an_inverse_gamma_distribution_where_both_formulas_end():
    """Type V."""
    one = stats.invgamma(9.0)
    mean, variance, skewness, excess = (float(m) for m in one.stats("mvsk"))
    for shift in (0.0, 1e-13, -1e-13, 1e-9, -1e-9, 1e-6, -1e-6):
        found = pearson_sf(Z, skewness, excess + shift)
        assert_allclose(found, one.sf(mean + Z * np.sqrt(variance)), rtol=1e-4, atol=1e-200)


@pytest.mark.parametrize("skewness", [-1.0, 0.0, 0.7, 3.0])
def test_lighter_tails_than_type_3_are_type_3(skewness):
    """A distribution that ends would give its largest values, which occur, a p-value of 0."""
    for excess in (1.5 * skewness**2, 1.4 * skewness**2 - 0.1, np.nan, np.inf):
        assert_allclose(pearson_sf(Z, skewness, excess), pearson3_sf(Z, skewness), rtol=0)
    close = 1.5 * skewness**2 + 3e-6 * (1 + skewness**2)
    assert_allclose(pearson_sf(Z, skewness, close), pearson3_sf(Z, skewness), rtol=3e-3, atol=1e-20)


def test_of_many_pairs_at_once():
    """Each number is its own, whatever stands beside it; broadcasting and NaN."""
    rng = np.random.default_rng(0)
    z, skewness = 3 * rng.normal(size=(2, 40, 50))
    excess = 1.5 * skewness**2 + rng.exponential(4, (40, 50)) - 1
    z[3, 4], skewness[5, 6], excess[7, 8] = np.nan, np.nan, np.nan
    found = pearson_sf(z, skewness, excess)
    each = [pearson_sf(*one) for one in zip(z.ravel(), skewness.ravel(), excess.ravel(), strict=True)]
    assert_allclose(found.ravel(), np.array(each), rtol=1e-9, atol=1e-300)
    assert np.isnan(found[3, 4])
    assert np.isnan(found[5, 6])
    assert found[7, 8] == pearson3_sf(z[7, 8], skewness[7, 8])
    assert np.isnan(found).sum() == 2
    assert ((found >= 0) & (found <= 1))[~np.isnan(found)].all()


class TestPearson3:
    @pytest.mark.parametrize("skewness", [-2.0, -0.5, -0.006, 0.006, 0.3, 2.8])
    def test_equals_the_shifted_gamma_distribution(self, skewness):
        z = np.linspace(-4, 8, 25)
        shape = 4 / skewness**2
        if skewness > 0:
            expected = stats.gamma(shape).sf(shape + np.sqrt(shape) * z)
        else:
            expected = stats.gamma(shape).cdf(shape - np.sqrt(shape) * z)
        assert_allclose(pearson3_sf(z, skewness), expected, rtol=1e-10, atol=1e-300)
        assert_allclose(pearson3_sf(z, skewness), stats.pearson3(skewness).sf(z), rtol=1e-10, atol=1e-300)

    def test_is_continuous_in_the_skewness(self):
        z = np.linspace(-4, 8, 25)
        for edge, tolerance in ((0.005, 5e-4), (-0.005, 5e-4), (1e-7, 1e-5), (-1e-7, 1e-5)):
            assert_allclose(pearson3_sf(z, edge * (1 - 1e-9)), pearson3_sf(z, edge * (1 + 1e-9)), rtol=tolerance)

    def test_no_skewness_is_normal(self):
        z = np.linspace(-4, 8, 25)
        assert_allclose(pearson3_sf(z, 0.0), stats.norm.sf(z), rtol=1e-12)

    def test_outside_the_support(self):
        assert pearson3_sf(3.0, -2.0) == 0
        assert pearson3_sf(-3.0, 2.0) == 1

    def test_nan(self):
        assert np.isnan(pearson3_sf(np.nan, 0.5))
        assert np.isnan(pearson3_sf(0.5, np.nan))
