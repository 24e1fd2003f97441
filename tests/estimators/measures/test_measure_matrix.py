"""Measures over all pairs of layers, their gradients, and their error messages."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from libraries import to_numpy
from measure_definitions import OPTIONS
from numpy.testing import assert_allclose

from cka_probe.estimators import (
    MEASURES,
    RBF,
    Polynomial,
    aligned_cosine,
    angular_distance,
    cca_r2,
    cknna,
    distance_correlation,
    gulp,
    hard_correlation,
    held_out_cca,
    held_out_regression_r2,
    layer_mmd_squared,
    linear_regression_r2,
    mean_cca,
    mmd_matrix,
    mutual_knn,
    normalized_bures_similarity,
    partial_whitening_distance,
    permutation_procrustes,
    procrustes_distance,
    procrustes_size_and_shape,
    pwcca,
    rsa,
    soft_correlation,
    soft_matching,
    svcca,
    uncentred_alignment,
)

NAMES = list(MEASURES)


def score(name, x, y):
    return MEASURES[name].function(x, y, **OPTIONS.get(name, {}))


# --- matrices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def layers(rng):
    x = rng.normal(size=(12, 3))
    return [x, x**2, np.ones((12, 2)), rng.normal(size=(12, 20))], [x + 1, np.tanh(x @ rng.normal(size=(3, 4)))]


@pytest.mark.parametrize("name", NAMES)
class TestMatrix:
    def test_equals_the_values_of_single_pairs(self, xp, layers, name):
        xs, ys = ([xp.asarray(z) for z in side] for side in layers)
        measure, options = MEASURES[name], OPTIONS.get(name, {})
        for left, right in ((xs, ys), (xs, None)):
            values, chance = measure.matrix(left, right, **options)
            columns = left if right is None else right
            expected = [[float(score(name, a, b)) for b in columns] for a in left]
            assert values.shape == (len(left), len(columns))
            assert values.dtype == xp.float64
            assert_allclose(to_numpy(values), expected, rtol=1e-9, atol=1e-12)
            assert (chance is None) == (measure.chance is None)
            if chance is not None:
                expected = [[float(measure.chance(a, b, **options)) for b in columns] for a in left]
                assert_allclose(to_numpy(chance), expected, rtol=1e-9, atol=1e-12)

    def test_only_a_constant_layer_is_nan(self, layers, name):
        values = MEASURES[name].matrix(layers[0], **OPTIONS.get(name, {})).values
        expected = np.zeros((4, 4), dtype=bool)
        if name != "uncentred_alignment":
            expected[2, :] = expected[:, 2] = True
        assert (np.isnan(values) == expected).all()

    def test_errors_name_the_layer(self, layers, name):
        xs, ys = layers
        with pytest.raises(ValueError, match=r"`ys\[1\]` holds NaN"):
            MEASURES[name].matrix(xs, [ys[0], ys[1] * np.nan])
        with pytest.raises(ValueError, match=r"`xs\[0\]` has 12 samples and `ys\[0\]` has 11"):
            MEASURES[name].matrix(xs, [ys[0][:11]])

    def test_unknown_options_are_refused(self, layers, name):
        with pytest.raises(TypeError, match="has no option `bandwidht`"):
            MEASURES[name].matrix(layers[0], bandwidht=1.0)


def test_options_reach_the_matrix(layers):
    xs, ys = layers
    assert_allclose(MEASURES["svcca"].matrix(xs, ys, variance=0.6).values[0, 1], svcca(xs[0], ys[1], variance=0.6))
    assert_allclose(
        MEASURES["gulp"].matrix(xs, ys, regularization=1.0).values[0, 1], gulp(xs[0], ys[1], regularization=1.0)
    )
    kernel = Polynomial(degree=2, offset=0.0, gamma=1.0)
    assert_allclose(mmd_matrix(xs, ys, kernel=kernel), MEASURES["mmd"].matrix(xs, ys, kernel=kernel).values, rtol=0)
    with pytest.raises(TypeError, match=r"`mean_cca` has no option `variance`\. It has no options"):
        MEASURES["cca"].matrix(xs, ys, variance=0.5)


def test_layers_with_batch_axes_are_refused(rng):
    with pytest.raises(ValueError, match=r"`xs\[0\]` must have shape \(n, p\), got \(2, 8, 3\)"):
        MEASURES["nbs"].matrix([rng.normal(size=(2, 8, 3))])


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        procrustes_distance,
        angular_distance,
        normalized_bures_similarity,
        layer_mmd_squared,
        uncentred_alignment,
        lambda x, y: gulp(x, y, regularization=0.1),
        lambda x, y: rsa(x, y, comparison="pearson"),
        lambda x, y: rsa(x, y, comparison="pearson", dissimilarity="euclidean"),
        lambda x, y: cknna(x, y, k=3, form="paper"),
        distance_correlation,
        lambda x, y: distance_correlation(x, y, bias_corrected=True),
        soft_correlation,
        hard_correlation,
        permutation_procrustes,
        soft_matching,
        procrustes_size_and_shape,
        aligned_cosine,
    ],
)
@pytest.mark.parametrize("width", [3, 9])
def test_gradient(rng, function, width):
    x = torch.tensor(rng.normal(size=(6, width)), requires_grad=True)
    y = torch.tensor(rng.normal(size=(6, 4)), requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, y))


def test_gradient_through_subspaces(rng):
    x = torch.tensor(rng.normal(size=(8, 3)), requires_grad=True)
    y = torch.tensor(rng.normal(size=(8, 4)), requires_grad=True)
    for function in (linear_regression_r2, cca_r2, mean_cca, partial_whitening_distance):
        assert torch.autograd.gradcheck(function, (x, y))
    more = [torch.tensor(rng.normal(size=(16, p)), requires_grad=True) for p in (3, 4)]
    for function in (held_out_regression_r2, held_out_cca):
        assert torch.autograd.gradcheck(partial(function, folds=2), more)


def test_the_gradient_at_distance_0_is_finite(rng):
    x = torch.tensor(rng.normal(size=(6, 3)), requires_grad=True)
    for distance in (procrustes_distance, angular_distance):
        (gradient,) = torch.autograd.grad(distance(x, x.detach().clone()), x)
        assert torch.isfinite(gradient).all()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_bad_features(name, pair):
    x, y = pair
    function = MEASURES[name].function
    with pytest.raises(ValueError, match="`x` has 14 samples and `y` has 13"):
        function(x, y[:13])
    with pytest.raises(ValueError, match="`y` holds NaN"):
        function(x, y * np.inf)
    with pytest.raises(TypeError, match="`y` is from torch"):
        function(x, torch.tensor(y))
    with pytest.raises(TypeError, match="`x` must be an array"):
        function(x.tolist(), y)
    with pytest.raises(ValueError, match=f"needs at least {MEASURES[name].minimum}"):
        function(x[: MEASURES[name].minimum - 1], y[: MEASURES[name].minimum - 1])


def test_bad_options(pair):
    for bad in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="`variance` must be above 0 and at most 1"):
            svcca(*pair, variance=bad)
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`regularization` must be not negative, and finite"):
            gulp(*pair, regularization=bad)
    with pytest.raises(TypeError, match="`variance` must be a number, got str"):
        svcca(*pair, variance="0.99")
    with pytest.raises(ValueError, match='`comparison` must be "spearman" or "pearson"'):
        rsa(*pair, comparison="kendall")
    with pytest.raises(ValueError, match='`dissimilarity` must be "correlation", "cosine" or "euclidean"'):
        rsa(*pair, dissimilarity="manhattan")
    for function in (mutual_knn, cknna):
        with pytest.raises(ValueError, match="`k` must be from 1 to 13 neighbours for 14 samples"):
            function(*pair, k=14)
        with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
            function(*pair, k=0)
        with pytest.raises(TypeError, match="`k` must be an int, got float"):
            function(*pair, k=3.0)
    with pytest.raises(ValueError, match='`form` must be "released" or "paper"'):
        cknna(*pair, form="official")
    with pytest.raises(ValueError, match="A median bandwidth would give each pair of layers another kernel"):
        layer_mmd_squared(*pair, kernel=RBF())


def test_cca_of_unrelated_layers_is_1_with_few_samples(rng):
    """docs/measures.md warns of this."""
    x, y = rng.normal(size=(2, 10, 9))
    assert_allclose([mean_cca(x, y), cca_r2(x, y), pwcca(x, y)], 1, rtol=1e-9)
    assert_allclose(MEASURES["cca_r2"].chance(x, y), 1, rtol=1e-9)
