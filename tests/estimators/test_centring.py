"""Centred and U-centred Gram matrices equal their definitions."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from cka_probe.estimators import center_gram, hsic_from_grams, u_center_gram
from cka_probe.estimators.centring import without_diagonal


@pytest.mark.parametrize("n", [3, 4, 9])
def test_centred_rows_sum_to_zero(xp, rng, n):
    K = rng.normal(size=(2, n, n))
    K = K + np.swapaxes(K, 1, 2)
    H = reference.centring(n)
    assert_allclose(to_numpy(center_gram(xp.asarray(K))), H @ K @ H, atol=1e-14)
    A = to_numpy(u_center_gram(xp.asarray(K)))
    assert_allclose(A.sum(axis=-1), 0, atol=1e-13)
    assert_array_equal(np.diagonal(A, axis1=1, axis2=2), 0)


def test_u_centring_entry_by_entry(xp, rng):
    n = 6
    K = reference.gram(rng.normal(size=(n, 2)))
    off = K - np.diag(np.diag(K))
    r, s = off.sum(axis=1), off.sum()
    expected = [
        [0 if i == j else K[i, j] - (r[i] + r[j]) / (n - 2) + s / ((n - 1) * (n - 2)) for j in range(n)]
        for i in range(n)
    ]
    assert_allclose(to_numpy(u_center_gram(xp.asarray(K))), expected, atol=1e-14)


@given(st.integers(0, 10**6))
def test_terms_of_one_sample_drop_out(seed):
    """Adding f_i + f_j to the Gram matrix does not change HSIC_1, so features may be shifted."""
    rng = np.random.default_rng(seed)
    K, L = (a + a.T for a in rng.normal(size=(2, 6, 6)))
    f = 10 * rng.normal(size=6)
    assert_allclose(hsic_from_grams(K + f[:, None] + f[None, :], L), hsic_from_grams(K, L), rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(4, 9))
def test_self_term_is_never_negative(seed, n):
    K = np.random.default_rng(seed).normal(size=(n, n))
    K = K + K.T
    assert hsic_from_grams(K, K) >= 0
    assert hsic_from_grams(K, K, estimator="biased") >= 0


@pytest.mark.parametrize("square", [2.0, np.inf, np.nan])
def test_the_diagonal_goes_whatever_it_holds(xp, rng, square):
    K = rng.normal(size=(3, 4, 4))
    expected = K * (1 - np.eye(4))
    K[1, 2, 2] = square
    assert_array_equal(to_numpy(without_diagonal(xp.asarray(K))), expected)
