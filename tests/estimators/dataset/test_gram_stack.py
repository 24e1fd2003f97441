"""``GramStack`` and ``whole_gram`` against CKA, the jackknife and the exact null of whole features."""

import array_api_strict
import numpy as np
import pytest
import reference
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import RBF, Cosine, Laplacian, Linear, cka_matrix_with_error, cka_test
from cka_probe.estimators.dataset import gram_stack, layer_parts
from cka_probe.estimators.dataset.gram_stack import GramStack, stack_bytes
from cka_probe.estimators.dataset.layer_parts import ArrayFeatures, whole_gram

LIBRARIES = {"numpy": np.asarray, "torch": torch.from_numpy, "strict": array_api_strict.asarray}


def layers(n=40, dtype=np.float64):
    rng = np.random.default_rng(3)
    first = rng.normal(size=(n, 6))
    found = [first, first @ rng.normal(size=(6, 70)) + rng.normal(size=(n, 70)) + 50, rng.normal(size=(n, 30)) ** 3]
    return [x.astype(dtype) for x in found]


def stacked(features, estimator="unbiased", kernel=None):
    stack = GramStack(features[0].shape[0], estimator)
    for place, x in enumerate(features):
        stack.add(place, whole_gram(ArrayFeatures(x), kernel or Linear()))
    return stack


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", [Linear(), RBF(), Cosine(), Laplacian(fraction=0.5)])
@pytest.mark.parametrize("part", [2**23, 300])
def test_values_and_errors_equal_those_of_whole_features(library, estimator, kernel, part, monkeypatch):
    monkeypatch.setattr(layer_parts, "PART", part)
    features = layers()
    expected = cka_matrix_with_error(features, kernel=kernel, estimator=estimator)
    stack = stacked([LIBRARIES[library](x) for x in features], estimator, kernel)
    assert_allclose(to_numpy(stack.cka([0, 1, 2], [0, 1, 2])), expected.value, atol=1e-12)
    assert_allclose(to_numpy(stack.jackknife([0, 1, 2], [0, 1, 2])[0]), expected.standard_error, atol=1e-10)
    assert_allclose(to_numpy(stack.cka([2], [0, 1])), expected.value[2:, :2], atol=1e-12)
    assert_allclose(to_numpy(stack.jackknife([2], [0, 1])[0]), expected.standard_error[2:, :2], atol=1e-10)


def test_the_definition_in_float64():
    x, y = layers()[:2]
    value = stacked([x, y]).cka([0], [1])
    assert value[0, 0] == pytest.approx(reference.cka(x, y), abs=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 256])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_number_of_rows_at_once_changes_nothing(rows, estimator, monkeypatch):
    features = layers()
    before = stacked(features, estimator)
    monkeypatch.setattr(gram_stack, "ROWS", rows)
    after = stacked(features, estimator)
    assert_allclose(after.cka([0, 1], [1, 2]), before.cka([0, 1], [1, 2]), atol=1e-13)
    assert_allclose(after.jackknife([0, 1], [1, 2])[0], before.jackknife([0, 1], [1, 2])[0], atol=1e-13)


def test_the_shape_of_the_null_is_that_of_the_test():
    x, y, _ = layers()
    found, expected = stacked([x, y]).null_shape([0], [1]), cka_test(x, y)
    assert found.skewness[0, 0] == pytest.approx(expected.skewness, abs=1e-10)
    assert found.excess_kurtosis[0, 0] == pytest.approx(expected.excess_kurtosis, abs=1e-10)


def test_the_shape_of_many_samples_is_estimated_from_some(monkeypatch):
    x, y, _ = layers(n=600)
    exact = stacked([x, y]).null_shape([0], [1])
    monkeypatch.setattr(gram_stack, "SOME", 300)
    found = stacked([x, y]).null_shape([0], [1])
    assert found.skewness[0, 0] == pytest.approx(exact.skewness[0, 0], rel=0.2)
    assert found.excess_kurtosis[0, 0] == pytest.approx(exact.excess_kurtosis[0, 0], rel=0.3, abs=0.1)


def test_more_samples_than_float64_is_used_for():
    features = layers(n=700, dtype=np.float32)
    expected = cka_matrix_with_error([x.astype(np.float64) for x in features])
    stack = stacked(features)
    assert stack.rows[0].dtype == np.float32
    assert_allclose(stack.cka([0, 1, 2], [0, 1, 2]), expected.value, atol=1e-6)
    assert_allclose(stack.jackknife([0, 1, 2], [0, 1, 2])[0], expected.standard_error, atol=1e-6)


def test_layers_without_a_value_say_why():
    n = 20
    flat = np.full((n, 3), 0.1, dtype=np.float32)
    one_hot = np.eye(n, dtype=np.float32)
    sparse = np.zeros((n, 2))
    sparse[0] = 1.0
    stack = stacked([flat, one_hot])
    assert stack.reasons == {0: "constant", 1: "alike"}
    assert np.isnan(stack.cka([0, 1], [0, 1])).all()
    assert stacked([sparse], kernel=RBF()).reasons == {0: "undefined"}
    assert stacked([flat], kernel=RBF()).reasons == {0: "constant"}


@pytest.mark.parametrize(("mean", "scale"), [(1e5, 1.0), (0.0, 1e10), (0.0, 1e-10), (3e4, 1e3)])
@pytest.mark.parametrize("part", [2**23, 400])
def test_means_and_scales_of_float32(mean, scale, part, monkeypatch):
    monkeypatch.setattr(layer_parts, "PART", part)
    x, y, _ = layers(n=50)
    single = ((x + mean) * scale).astype(np.float32)
    value = stacked([single, y.astype(np.float32)]).cka([0], [1])[0, 0]
    expected = reference.cka(single.astype(np.float64), y.astype(np.float32).astype(np.float64))
    assert value == pytest.approx(expected, abs=1e-6)


def test_a_far_sample():
    x, y, _ = layers(n=50)
    x[7] *= 1e10
    value = stacked([x.astype(np.float32), y]).cka([0], [1])[0, 0]
    wide = x.astype(np.float32).astype(np.float64)
    wide = wide - np.median(wide, axis=0)
    assert value == pytest.approx(reference.cka_grams(wide @ wide.T, (y - y.mean(0)) @ (y - y.mean(0)).T), abs=2e-6)


def test_another_number_of_samples_is_an_error():
    stack = stacked(layers())
    with pytest.raises(ValueError, match="of 30 samples, those before of 40"):
        stack.add(9, whole_gram(ArrayFeatures(layers(n=30)[0]), Linear()))


def test_the_memory_is_that_of_half_the_matrices():
    stack = stacked(layers(n=300))
    assert sum(row.nbytes for row in stack.rows.values()) == 3 * 8 * 300 * 299 // 2
    assert stack_bytes(3, 300) > 3 * 8 * 300 * 299 // 2
