"""Far samples that hold much of the weight of a layer give warnings; ordinary samples do not."""

import numpy as np
import pytest

from cka_probe.estimators import OutlierWarning, cka, cka_matrix_with_error, cka_with_error, sample_influence


@pytest.mark.parametrize("p", [2, 40])
def test_one_far_sample(xp, rng, p):
    x, y = rng.normal(size=(2, 20, p))
    y[7] += 100
    x, y = xp.asarray(x), xp.asarray(y)
    message = r"Two fifths of the weight of `y` rest on 1 of 20 samples \(index 7\), .* Cosine or RBF"
    for estimate in (cka_with_error, sample_influence):
        with pytest.warns(OutlierWarning, match=message):
            estimate(x, y)
    with pytest.warns(OutlierWarning, match=r"`xs\[1\]` rest on 1 of 20 samples"):
        cka_matrix_with_error([x, y])


def test_a_far_group(rng):
    """A shifted subset makes any layers similar (Davari et al. 2023), and the jackknife error does not show it."""
    x, y = rng.normal(size=(2, 1200, 5))
    assert cka(x, y) < 0.05
    x[:12] += 60
    y[:12] -= 60
    assert cka(x, y) > 0.9
    with pytest.warns(OutlierWarning) as caught:
        error = cka_with_error(x, y).standard_error
    assert error < 0.2
    assert ["rest on 5 of 1200 samples" in str(w.message) for w in caught] == [True, True]


def test_names_no_more_than_ten(rng):
    x = rng.normal(size=(3000, 2))
    x[:30] += 100
    with pytest.warns(OutlierWarning, match=r"rest on 12 of 3000 samples \(index .* and more\)"):
        cka_with_error(x, rng.normal(size=(3000, 2)))


def test_the_worst_of_a_stack(rng):
    x = rng.normal(size=(3, 20, 4))
    x[1, 5] += 1000
    with pytest.warns(OutlierWarning, match=r"`x` rest on 1 of 20 samples \(index 5\)"):
        cka_with_error(x, rng.normal(size=(3, 20, 4)))


def test_influence_finds_it(rng):
    x, y = rng.normal(size=(2, 60, 5))
    x[11] += 8
    y[11] += 8
    influence = sample_influence(x, y, estimator="biased")
    assert np.argmax(influence) == 11
    assert influence[11] > 10 * np.median(np.abs(influence))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("n", [5, 8, 20, 100])
def test_gaussian_samples_are_not_warned_of(n, estimator):
    rng = np.random.default_rng(1)
    for _ in range(20):
        cka_with_error(*rng.normal(size=(2, n, 4)), estimator=estimator)
