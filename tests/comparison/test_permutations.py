"""compare(permutations=...) counts p-values, corrects them for the number of pairs, and scores values by their null."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import cka_probe as cp
from cka_probe.estimators import MinibatchCKA, calibrate

compared = partial(cp.compare, progress=False)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def data(count=4, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, generator=generator) for _ in range(count)]


def features(net, batch):
    with torch.no_grad():
        return [net[: i + 1](batch).double() for i in range(3)]


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_numbers_are_those_of_minibatch_cka(estimator):
    x, y, batches = network(0), network(1), data()
    found = compared(x, y, batches, permutations=39, estimator=estimator)
    statistics = MinibatchCKA(permutations=39, estimator=estimator, seed=(0, 0))
    for batch in batches:
        statistics.update(features(x, batch), features(y, batch))
    expected = statistics.calibration()
    assert_allclose(found.values, expected.value, atol=1e-6)
    assert_allclose(found.p_value, expected.p_value, atol=1.5 / 40)  # float32 may order equal values otherwise
    assert_allclose(found.extra["z_score"], expected.z_score, rtol=1e-4, atol=1e-4)
    assert_allclose(found.extra["score"], expected.score, rtol=1e-3, atol=1e-4)
    assert set(found.extra) == {"corrected_p_value", "z_score", "score"}
    assert (found.extra["corrected_p_value"] >= found.p_value - 1e-9).all()
    assert found.meta["permutations"] == 39


def test_counted_and_exact_p_values_agree():
    x, y, batches = network(0), network(1), data(6, 16)
    exact, counted = compared(x, y, batches).p_value, compared(x, y, batches, permutations=999).p_value
    assert_allclose(counted, exact, atol=5 * np.sqrt(0.25 / 999))
    assert exact.max() > 0.01 or exact.min() < 0.01


def test_all_forms_of_a_comparison(tmp_path):
    x, y, batches = network(0), network(1), data()
    itself = compared(x, x, batches, permutations=19)
    assert_array_equal(np.diag(itself.p_value), 1 / 20)
    many = cp.compare_many({"x": x, "y": y}, batches, permutations=19, progress=False)
    assert many.extra["score"].shape == (6, 6)
    whole = compared(x, y, data(30, 6), permutations=19)

    def stopping():
        for index, batch in enumerate(data(30, 6)):
            if index == 25:
                raise RuntimeError("stop")
            yield batch

    with pytest.raises(RuntimeError, match="stop"):
        compared(x, y, stopping(), permutations=19, checkpoint=tmp_path / "run.npz")
    with pytest.raises(ValueError, match="permutations"):
        compared(x, y, data(30, 6), permutations=29, checkpoint=tmp_path / "run.npz")
    resumed = compared(x, y, data(30, 6), permutations=19, checkpoint=tmp_path / "run.npz")
    for name, array in whole.extra.items():
        assert_array_equal(resumed.extra[name], array)


def test_other_measures_over_all_samples():
    x, y, batches = network(0), network(1), data()
    found = compared(x, y, batches, measure="procrustes", permutations=39)
    joined = torch.cat(batches)
    expected = calibrate("procrustes", features(x, joined), features(y, joined), permutations=39)
    assert_allclose(found.values, expected.value, atol=1e-5)
    assert_allclose(found.p_value, expected.p_value, atol=1.5 / 40)
    assert_allclose(found.chance, expected.mean, atol=1e-4)
    assert set(found.extra) == {"corrected_p_value", "z_score", "score"}
    assert found.is_distance
    assert compared(x, y, batches, measure="procrustes").p_value is None
    for options in ({"scope": "dataset"}, {"measure": "mmd", "scope": "minibatch"}):
        with pytest.raises(ValueError, match="`permutations` is for CKA with scope="):
            compared(x, y, batches, permutations=19, **options)


def test_refused():
    for permutations, error in ((3, ValueError), (True, TypeError), (99.5, TypeError)):
        with pytest.raises(error, match="`permutations` must be"):
            compared(network(0), network(1), data(), permutations=permutations)
