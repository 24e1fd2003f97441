"""Gram matrices of single layers: float32 accuracy for any mean, and exactly 0 for a constant layer."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import cka_matrix
from cka_probe.estimators.gram_accuracy import MEAN_LIMIT, SUMMED_LIMIT
from cka_probe.estimators.layer_grams import CPU_BLOCK, FEW, layer_gram, repeated_gram

WIDE = 4096


def centred(x):
    """The U-centred Gram matrix by its definition, in float64."""
    x = x.astype(np.float64)
    x = x - x.mean(0)
    return u_centred(x @ x.T)


def u_centred(gram):
    gram = gram.copy()
    n = len(gram)
    np.fill_diagonal(gram, 0)
    rows, total = gram.sum(1), gram.sum()
    gram = gram - rows[:, None] / (n - 2) - rows[None, :] / (n - 2) + total / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0)
    return gram


def error(kept, x):
    """The relative error of the U-centred Gram matrix."""
    factor = kept.factor if isinstance(kept.factor, float) else float(kept.factor)
    found, expected = u_centred(to_numpy(kept.gram).astype(np.float64) * factor), centred(x)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("width", [3, 700, WIDE, CPU_BLOCK // FEW + 5])
@pytest.mark.parametrize("n", [5, FEW, FEW + 3])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, 3e4, 1e7])
def test_any_mean(xp, rng, n, width, mean):
    x = (rng.normal(size=(n, width)) + mean * rng.normal(size=width)).astype(np.float32)
    kept = layer_gram(xp.asarray(x))
    assert error(kept, x) < 2e-6
    assert kept.mode != "raw" or mean < 1e3 or n < FEW
    again = repeated_gram(xp.asarray(x), kept.mode)
    assert again.mode == kept.mode
    assert error(again, x) < 2e-6


@pytest.mark.parametrize(
    ("n", "width", "mode"), [(24, 2**18, "shifted"), (32, 2**19, "shifted"), (16, 2**17, "scaled")]
)
def test_a_small_spread_beside_the_diagonal(xp, rng, n, width, mode):
    """The rounding of many products of a few columns averages out; fewer columns are computed in float64."""
    x = np.maximum(rng.normal(size=(n, width)).astype(np.float32), 0)
    kept = layer_gram(xp.asarray(x))
    assert kept.mode == mode
    assert mode == "scaled" or MEAN_LIMIT < kept.over_spread < SUMMED_LIMIT
    assert error(kept, x) < 1e-6


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12, 1e18])
def test_squares_out_of_range(rng, scale):
    """In torch only, because numpy warns of the overflow that is then avoided."""
    x = ((rng.normal(size=(FEW, 50)) + 2) * scale).astype(np.float32)
    assert error(layer_gram(torch.asarray(x)), x) < 2e-6


@pytest.mark.parametrize("value", [0.0, 0.3, -1e-20, 1e-3, 7e4, 3e12])
@pytest.mark.parametrize("width", [1, 50, WIDE])
def test_a_constant_layer_is_exactly_zero(xp, value, width):
    x = np.full((FEW + 1, width), value, np.float32) * np.linspace(1, 2, width, dtype=np.float32)
    assert not to_numpy(layer_gram(xp.asarray(x)).gram).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 100, WIDE - 1])
def test_what_is_not_finite_stays_so(rng, bad, column):
    """NaN and infinity of torch features stay for a recorder to find; arrays from users are checked before."""
    x = rng.normal(size=(FEW, WIDE)).astype(np.float32)
    x[3, column] = bad
    assert not np.isfinite(to_numpy(layer_gram(torch.asarray(x)).gram)).all()


def test_gradients_pass_the_mean(rng):
    x = torch.tensor(rng.normal(size=(6, 5)) + 1e4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: layer_gram(z).gram, (x,))


def test_safe_features_may_be_raw_next_time(xp, rng):
    x = rng.normal(size=(20, 30))
    result = layer_gram(xp.asarray(x, dtype=xp.float32))
    assert (result.factor, result.mode) == (1.0, "raw")
    x -= x.mean(0)
    assert_allclose(to_numpy(result.gram), x @ x.T, rtol=1e-4, atol=1e-4)


def test_a_large_mean_is_shifted_away(xp, rng):
    x = xp.asarray(rng.normal(size=(20, 30)) + 100, dtype=xp.float32)
    assert layer_gram(x).mode == "shifted"


@given(st.integers(0, 10**6), st.floats(-6, 6), st.floats(-3, 5), st.integers(4, 40), st.integers(1, 50))
def test_cka_for_any_mean_and_scale(seed, scale, mean, n, p):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, n, p))
    x = (10.0**scale * (z[0] + 10.0**mean * rng.normal(size=p))).astype(np.float32)
    y = (z[0] + z[1]).astype(np.float32)
    K = reference.centred_linear_gram(x)
    conditioning = reference.hsic1(K, K) / reference.hsic0(K, K)
    found = cka_matrix([x], [y])[0, 0]
    assert abs(found - reference.cka(x, y)) <= 1e-6 / min(1, conditioning)
