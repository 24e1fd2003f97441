"""The theory of CKA and MMD: every term equals a brute-force loop, and every bound holds for random features."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose
from strategies import feature_pairs

from cka_probe.estimators import (
    RBF,
    Laplacian,
    Linear,
    Polynomial,
    cka,
    cka_mmd_bounds,
    hsic,
)

# --- brute force -------------------------------------------------------------------------------------------------


def mmd_v(rows_x, rows_y, kernel):
    """The biased MMD^2, with one kernel call for each pair of rows."""

    def mean(a, b):
        return math.fsum(kernel(u, v) for u in a for v in b) / (len(a) * len(b))

    return mean(rows_x, rows_x) + mean(rows_y, rows_y) - 2 * mean(rows_x, rows_y)


def square(u, v):
    return reference.linear(u, v) ** 2


def joint_and_product(K, L):
    """MMD^2 between the pairs (i, i) and all pairs (i, j) with the product kernel, as a sum of n^4 terms."""
    n = len(K)
    joint = [(i, i, 1 / n) for i in range(n)]
    product = [(i, j, -1 / n**2) for i in range(n) for j in range(n)]
    weighted = joint + product
    return math.fsum(a * b * K[i, k] * L[j, m] for i, j, a in weighted for k, m, b in weighted)


def expected_terms(x, y, tau, kernel):
    K, L = reference.gram(x, kernel), reference.gram(y, kernel)
    n = len(K)
    terms = {"tau": tau, "samples": n}
    for suffix, centred in (("", True), ("_uncentred", False)):
        A, B = reference.unit_gram(K, centred), reference.unit_gram(L, centred)
        rho, sigma = math.sqrt(n) * A, math.sqrt(n) * B
        c = float(np.sum(A * B))
        D = A - B
        rank = np.linalg.matrix_rank(D, tol=1e-9)
        terms |= {
            "cka" + suffix: c,
            "paired_distance" + suffix: sum(reference.distance(u, v) ** 2 for u, v in zip(rho, sigma, strict=True)) / n,
            "decomposition_residual" + suffix: 0.0,
            "gaussian_mmd_squared" + suffix: mmd_v(rho, sigma, reference.rbf(tau)),
            "t1_bound" + suffix: 2 * (1 - math.exp(-(1 - c) / tau**2)),
            "t1_linear_bound" + suffix: 2 * (1 - c) / tau**2,
            "linear_mmd_squared" + suffix: mmd_v(rho, sigma, reference.linear),
            "quadratic_mmd_squared" + suffix: mmd_v(rho, sigma, square),
            "t3_lower" + suffix: 4 * (1 - c) ** 2 / rank,
            "t3_upper" + suffix: 2 * (1 - c**2),
            "t3_spectral_lower" + suffix: np.linalg.norm(D @ D) ** 2,
            "rank" + suffix: rank,
        }
    c, c0 = terms["cka"], terms["cka_uncentred"]
    return terms | {
        "t2_bound_uncentred": 2 * (1 - c0),
        "t2_ratio_uncentred": terms["linear_mmd_squared_uncentred"] / (2 * (1 - c0)),
        "t4_bound": (1 - c) * (3 + c + min(1, 2 * (1 - c))) / tau**4,
        "t4_linear_bound": 4.5 * (1 - c) / tau**4,
        "conjectured_bound": (1 - c**2) / tau**4,
        "hsic": np.trace(K @ reference.centring(n) @ L @ reference.centring(n)) / n**2,
        "hsic_norm": np.linalg.norm(reference.centring(n) @ K @ reference.centring(n))
        * np.linalg.norm(reference.centring(n) @ L @ reference.centring(n))
        / n**2,
        "hsic_mmd_squared": joint_and_product(K, L),
    }


KERNELS = [
    pytest.param(Linear(), reference.linear, id="linear"),
    pytest.param(RBF(bandwidth=1.3), reference.rbf(1.3), id="rbf"),
    pytest.param(Polynomial(degree=2, gamma=0.5), reference.polynomial(2, 1.0, 0.5), id="polynomial"),
]


@pytest.mark.parametrize(("kernel", "by_pairs"), KERNELS)
@pytest.mark.parametrize(("width", "tau"), [(2, 0.7), (5, 3.0)])
def test_every_term_equals_its_definition(xp, rng, kernel, by_pairs, width, tau):
    x = rng.normal(size=(7, width)) + 0.5
    y = x[:, :2] + rng.normal(size=(7, 2))
    terms = cka_mmd_bounds(xp.asarray(x), xp.asarray(y), tau=tau, kernel=kernel)
    expected = expected_terms(x, y, tau, by_pairs)
    assert set(expected) == {field.name for field in fields(terms)}
    for name, value in expected.items():
        assert_allclose(terms.to_dict()[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert terms.violations() == ()


def test_terms_stay_in_their_library_in_float64(xp, rng):
    x = xp.asarray(rng.normal(size=(3, 6, 2)), dtype=xp.float32)
    terms = cka_mmd_bounds(x, x**2)
    for field in fields(terms)[2:]:
        value = getattr(terms, field.name)
        assert isinstance(value, type(x)), field.name
        assert value.dtype == xp.float64, field.name
        assert value.shape == (3,), field.name


def test_a_stack_equals_its_pairs_one_by_one(xp, rng):
    x, y = xp.asarray(rng.normal(size=(2, 6, 2))), xp.asarray(rng.normal(size=(2, 6, 3)))
    stacked = cka_mmd_bounds(x, y)
    for i in range(2):
        single = cka_mmd_bounds(x[i, ...], y[i, ...]).to_dict()
        for field in fields(stacked)[2:]:
            value = to_numpy(getattr(stacked, field.name))[i]
            assert_allclose(value, single[field.name], rtol=1e-10, atol=1e-13, err_msg=field.name)


def test_the_kernels_of_both_sides_may_differ(rng):
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 3))
    terms = cka_mmd_bounds(x, y, kernel=RBF(bandwidth=1.0), kernel_y=Laplacian(bandwidth=2.0))
    A, B = (
        reference.unit_gram(reference.gram(x, reference.rbf(1.0))),
        reference.unit_gram(reference.gram(y, reference.laplacian(2.0))),
    )
    assert_allclose(terms.cka, np.sum(A * B), rtol=1e-12)


def test_agrees_with_cka_and_hsic(xp, rng):
    x, y = xp.asarray(rng.normal(size=(20, 3))), xp.asarray(rng.normal(size=(20, 4)))
    terms = cka_mmd_bounds(x, y).to_dict()
    assert_allclose(terms["cka"], float(cka(x, y, estimator="biased")), rtol=1e-12)
    assert_allclose(terms["hsic"], float(hsic(x, y, estimator="biased")) * (19 / 20) ** 2, rtol=1e-12)


def test_gradient(rng):
    x = torch.tensor(rng.normal(size=(6, 2)), requires_grad=True)
    y = torch.tensor(rng.normal(size=(6, 3)))
    assert torch.autograd.gradcheck(lambda a: cka_mmd_bounds(a, y).gaussian_mmd_squared, (x,))


# --- properties --------------------------------------------------------------------------------------------------

taus = st.floats(0.05, 50)
kernels = st.sampled_from([Linear(), RBF(bandwidth=3.0), Laplacian(bandwidth=2.0), Polynomial(gamma=0.01)])


@given(feature_pairs(), taus, kernels)
def test_t1_to_t6_and_the_conjecture_hold(pair, tau, kernel):
    terms = cka_mmd_bounds(*pair, tau=tau, kernel=kernel)
    assert terms.violations() == ()


@given(feature_pairs(), taus)
def test_the_weaker_forms_are_weaker(pair, tau):
    terms = cka_mmd_bounds(*pair, tau=tau)
    assert terms.t1_bound <= terms.t1_linear_bound
    assert terms.t1_bound_uncentred <= terms.t1_linear_bound_uncentred
    assert terms.t4_bound <= terms.t4_linear_bound * (1 + 1e-12)
    assert terms.t3_lower <= terms.t3_spectral_lower + 1e-12
    assert terms.conjectured_bound <= terms.t4_bound * (1 + 1e-12)
    if terms.paired_distance > 0:
        assert (terms.t4_linear_bound <= terms.t1_linear_bound * (1 + 1e-12)) == (tau**2 >= 2.25)


@given(feature_pairs())
def test_t5_gaussian_mmd_vanishes_only_at_alignment_1(pair):
    terms = cka_mmd_bounds(*pair, tau=1.0)
    if terms.cka < 1 - 1e-3:
        assert terms.gaussian_mmd_squared > 1e-12
    x, _ = pair
    same = cka_mmd_bounds(x, 3 * x + 1, tau=1.0)
    assert_allclose(same.cka, 1, atol=1e-9)
    assert_allclose(same.gaussian_mmd_squared, 0, atol=1e-9)


def test_t2_is_attained_when_the_matrices_differ_by_a_constant(rng):
    """L = K + t 11', with t chosen so that K and L have the same norm: Kbar - Lbar is a multiple of 11'."""
    base = rng.normal(size=(6, 2))
    K = base @ base.T
    h = reference.centring(6)
    K = h @ K @ h + 2.0
    # Kbar + t 11' has norm 1 again for one t != 0.
    Kbar = K / np.linalg.norm(K)
    t = -2 * Kbar.sum() / 36
    x = np.linalg.cholesky(Kbar + 1e-13 * np.eye(6))
    kernel_y = lambda *_: x @ x.T + t  # noqa: E731
    terms = cka_mmd_bounds(x, x, kernel_y=kernel_y)
    assert_allclose(terms.t2_ratio_uncentred, 1, rtol=1e-6)
    assert cka_mmd_bounds(x, x**2).t2_ratio_uncentred < 0.9


@given(feature_pairs())
def test_centred_linear_mmd_is_identically_0(pair):
    assert_allclose(cka_mmd_bounds(*pair).linear_mmd_squared, 0, atol=1e-20)


def test_gaussian_mmd_tends_to_half_of_q_for_wide_kernels(rng):
    x, y = rng.normal(size=(2, 30, 4))
    terms = cka_mmd_bounds(x, y, tau=1e3)
    assert_allclose(1e12 * terms.gaussian_mmd_squared, terms.quadratic_mmd_squared / 2, rtol=1e-4)


@given(feature_pairs(), st.sampled_from([1e-3, 1e4]), st.integers(0, 99))
def test_nothing_but_hsic_changes_with_scale_and_rotation(pair, scale, seed):
    x, y = pair
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(x.shape[1],) * 2))
    before, after = cka_mmd_bounds(x, y).to_dict(), cka_mmd_bounds(scale * x @ rotation, y).to_dict()
    for name in ("cka", "gaussian_mmd_squared", "quadratic_mmd_squared", "t1_bound_uncentred", "cka_uncentred"):
        assert_allclose(after[name], before[name], rtol=1e-7, atol=1e-8, err_msg=name)


def test_the_uncentred_terms_change_with_a_shift_and_the_centred_do_not(rng):
    x, y = rng.normal(size=(2, 12, 3))
    before, after = cka_mmd_bounds(x, y), cka_mmd_bounds(x + 5, y)
    assert_allclose(after.gaussian_mmd_squared, before.gaussian_mmd_squared, rtol=1e-10)
    assert abs(after.cka_uncentred - before.cka_uncentred) > 0.01


# --- statements and constant layers ------------------------------------------------------------------------------


def test_statements_say_what_is_proved(rng):
    terms = cka_mmd_bounds(*rng.normal(size=(2, 8, 3)))
    statements = {s.name: s for s in terms.statements()}
    assert [name for name, s in statements.items() if not s.proved] == ["conjecture (not proved)"]
    assert "identically" in statements["T2, centred: vacuous"].claim
    assert "equal iff" in statements["T2, un-centred"].claim
    text = repr(terms)
    assert all(name in text for name in statements)
    assert str(cka_mmd_bounds(*rng.normal(size=(2, 5, 8, 3)))) == "CKA and MMD: (5,) pairs, n = 8, tau = 1"


def test_violations_are_found(xp, rng):
    """`violations` names T1 and T3 for numbers that break them."""
    x = xp.asarray(rng.normal(size=(8, 3)))
    terms = cka_mmd_bounds(x, x**2)
    broken = replace(terms, gaussian_mmd_squared=terms.t1_bound * 1.01, quadratic_mmd_squared=terms.t3_lower * 0.99)
    assert {"T1", "T3"} <= set(broken.violations())


def test_a_constant_side_has_no_centred_terms(xp, rng):
    x, y = xp.ones((8, 2), dtype=xp.float64), xp.asarray(rng.normal(size=(8, 3)))
    for terms in (cka_mmd_bounds(x, y), cka_mmd_bounds(y, x)):
        values = terms.to_dict()
        centred = set(values) - {"tau", "samples", "hsic", "hsic_norm", "hsic_mmd_squared"}
        for name in centred:
            assert math.isnan(values[name]) != name.endswith("_uncentred"), name
        assert terms.violations() == ()
    assert cka_mmd_bounds(x * 0.1, y, kernel=Polynomial()).violations() == ()


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_tau(rng):
    x = rng.normal(size=(8, 2))
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`tau` must be positive and finite"):
            cka_mmd_bounds(x, x, tau=tau)
    for tau in ("1", None, True):
        with pytest.raises(TypeError, match="`tau` must be a number"):
            cka_mmd_bounds(x, x, tau=tau)


def test_bad_features(rng):
    x = rng.normal(size=(8, 2))
    with pytest.raises(ValueError, match="`x` has 8 samples and `y` has 7"):
        cka_mmd_bounds(x, x[:7])
    with pytest.raises(ValueError, match="`y` holds NaN"):
        cka_mmd_bounds(x, np.full((8, 1), np.nan))


def test_a_table_line_of_a_stack(rng):
    with pytest.raises(ValueError, match=r"stack of \(2,\) pairs"):
        cka_mmd_bounds(*rng.normal(size=(2, 2, 8, 3))).to_dict()
