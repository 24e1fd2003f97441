"""Every estimator refuses bad input with a message that names the argument and the remedy."""

import array_api_strict
import numpy as np
import pytest
import torch
from libraries import to_numpy

from cka_probe.estimators import MinibatchCKA, chance_level, cka, cka_from_grams, cka_matrix, hsic, hsic_from_grams
from cka_probe.estimators.validation import check_features, check_pair, constant

PAIRS = [pytest.param(f, id=f.__name__) for f in (cka, hsic, chance_level)]


def ones(*shape):
    return np.arange(1.0, 1 + np.prod(shape)).reshape(shape)


@pytest.mark.parametrize("estimate", PAIRS)
class TestPairs:
    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            ([[1.0], [2.0]], ones(4, 2), "`x` must be an array of numpy, torch or CuPy, got list. Convert it first"),
            (ones(4, 2), None, "`y` must be an array of numpy, torch or CuPy, got NoneType"),
            (ones(4, 2).astype(int), ones(4, 2), "`x` must have a real floating dtype, got int64. Cast it first"),
            (ones(4, 2), ones(4, 2).astype(complex), "`y` must have a real floating dtype, got complex128"),
            (ones(4, 2) > 2, ones(4, 2), "`x` must have a real floating dtype, got bool"),
        ],
    )
    def test_kinds(self, estimate, x, y, message):
        with pytest.raises(TypeError, match=message):
            estimate(x, y)

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (ones(5, 2), ones(4, 2), "`x` has 5 samples and `y` has 4. Both must hold the same samples in the same"),
            (
                ones(5),
                ones(5),
                r"`x` must have shape \(..., n, p\), got \(5,\). A single feature needs a last axis of 1",
            ),
            (ones(5, 1), ones(5), r"`y` must have shape \(..., n, p\), got \(5,\)"),
            (ones(5, 2), ones(5, 0), r"`y` must not be empty, got shape \(5, 0\)"),
            (ones(0, 2), ones(0, 2), r"`x` must not be empty, got shape \(0, 2\)"),
            (ones(1, 2), ones(1, 2), "`x` has 1 samples, but this estimator needs at least"),
            (np.full((5, 2), np.nan), ones(5, 2), "`x` holds NaN or infinity. Find the sample or layer"),
            (ones(5, 2), ones(5, 2) * [1, np.inf], "`y` holds NaN or infinity"),
        ],
    )
    def test_values(self, estimate, x, y, message):
        with pytest.raises(ValueError, match=message):
            estimate(x, y)

    def test_libraries_may_not_mix(self, estimate):
        with pytest.raises(TypeError, match=r"from one library: `x` is from numpy and `y` is from torch. Convert one"):
            estimate(ones(4, 2), torch.ones((4, 2)))
        with pytest.raises(TypeError, match=r"`x` is from torch and `y` is from array_api_strict"):
            estimate(torch.ones((4, 2)), array_api_strict.asarray(ones(4, 2)))

    def test_devices_may_not_mix(self, estimate):
        with pytest.raises(ValueError, match=r"`x` is on cpu and `y` on meta. Move both to one device first"):
            estimate(torch.ones((4, 2)), torch.ones((4, 2), device="meta"))


@pytest.mark.parametrize("estimate", [cka, hsic])
class TestEstimator:
    def test_unknown(self, estimate):
        with pytest.raises(ValueError, match=r'`estimator` must be "unbiased" or "biased", got \'debiased\''):
            estimate(ones(4, 2), ones(4, 2), estimator="debiased")

    def test_unbiased_needs_four(self, estimate):
        with pytest.raises(ValueError, match=r'`x` has 3 samples, but .* at least 4. .*or use estimator="biased"'):
            estimate(ones(3, 2), ones(3, 2))

    def test_biased_needs_two(self, estimate):
        assert np.isfinite(estimate(ones(2, 2), ones(2, 2), estimator="biased"))
        with pytest.raises(ValueError, match=r"`x` has 1 samples, but .* at least 2. Pass more samples\.$"):
            estimate(ones(1, 2), ones(1, 2), estimator="biased")


@pytest.mark.parametrize("estimate", [cka_from_grams, hsic_from_grams])
class TestGrams:
    def test_square(self, estimate):
        with pytest.raises(ValueError, match=r"`gram_y` must have shape \(..., n, n\), got \(5, 3\). Pass features to"):
            estimate(np.eye(5), ones(5, 3))
        with pytest.raises(ValueError, match=r"`gram_x` has 5 samples and `gram_y` has 4"):
            estimate(np.eye(5), np.eye(4))

    def test_finite(self, estimate):
        with pytest.raises(ValueError, match=r"`gram_x` holds NaN"):
            estimate(np.full((5, 5), np.nan), np.eye(5))


class TestLayers:
    def test_no_layers(self):
        with pytest.raises(ValueError, match=r"`xs` holds no layers"):
            cka_matrix([])
        with pytest.raises(ValueError, match=r"`ys` holds no layers"):
            cka_matrix([ones(4, 2)], [])

    def test_layer_named_by_its_place(self):
        good = ones(6, 2)
        with pytest.raises(ValueError, match=r"`xs\[1\]` holds NaN or infinity"):
            cka_matrix([good, good * np.nan])
        with pytest.raises(TypeError, match=r"`ys\[1\]` must have a real floating dtype"):
            cka_matrix([good], [good, good.astype(int)])
        with pytest.raises(
            ValueError, match=r"`xs\[1\]` has shape \(5, 2\), but must be \(n, p\) with the n of `xs\[0\]`, 6"
        ):
            cka_matrix([good, ones(5, 2)])
        with pytest.raises(ValueError, match=r"`xs\[0\]` has shape \(2, 6, 2\), but must be \(n, p\)"):
            cka_matrix([ones(2, 6, 2)])

    def test_sides_must_fit(self):
        with pytest.raises(ValueError, match=r"`xs` hold 6 samples and `ys` 5. Both must hold the same samples"):
            cka_matrix([ones(6, 2)], [ones(5, 2)])
        with pytest.raises(TypeError, match=r"`xs\[0\]` is from numpy and `ys\[0\]` is from torch"):
            cka_matrix([ones(6, 2)], [torch.ones((6, 2))])
        with pytest.raises(TypeError, match=r"`xs\[0\]` is from numpy and `xs\[1\]` is from torch"):
            cka_matrix([ones(6, 2), torch.ones((6, 2))])
        with pytest.raises(ValueError, match=r"`xs\[0\]` is on cpu and `ys\[0\]` on meta"):
            cka_matrix([torch.ones((6, 2))], [torch.ones((6, 2), device="meta")])

    def test_a_single_array_is_not_a_list_of_layers(self):
        with pytest.raises(TypeError, match=r"`xs` must be a sequence of arrays, one for each layer, got one array"):
            cka_matrix(ones(6, 2))

    def test_layers_may_not_change(self):
        statistics = MinibatchCKA()
        statistics.update([ones(6, 2)])
        with pytest.raises(ValueError, match=r"These statistics have \(2, 2\) layers, the earlier ones have \(1, 1\)"):
            statistics.update([ones(6, 2), ones(6, 2)])

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match=r"`xs\[0\]` has 3 samples, but this estimator needs at least 4"):
            MinibatchCKA().update([ones(3, 2)])


class TestDtypes:
    @pytest.mark.parametrize(
        ("given", "computed"),
        [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
    )
    def test_half_precision_is_computed_in_float32(self, given, computed):
        x = torch.ones((4, 2), dtype=getattr(torch, given))
        _, checked = check_features(x)
        assert checked.dtype == getattr(torch, computed)

    def test_a_mixed_pair_is_computed_in_float64(self, xp):
        x, y = xp.ones((4, 2), dtype=xp.float32), xp.ones((4, 2), dtype=xp.float64)
        _, a, b = check_pair(x, y)
        assert a.dtype == b.dtype == xp.float64

    def test_constant_keeps_values_and_cuts_gradients(self, xp):
        x = xp.asarray([[1.0, 2.0]])
        np.testing.assert_array_equal(to_numpy(constant(x)), to_numpy(x))
        assert not constant(torch.ones(2, requires_grad=True)).requires_grad
