"""PERMANOVA against the analysis of variance, against all permutations, and on data without any effect."""

import itertools

import numpy as np
import pytest
from scipy import stats

from cka_probe.estimators.permanova import permanova


def distances(x: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=-1))


def test_for_points_on_a_line_it_is_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], [6, 9, 4])
    x = rng.normal(size=19) + (groups == "b")
    found = permanova(distances(x[:, None]), groups)
    expected = stats.f_oneway(*(x[groups == g] for g in "abc"))
    assert found.f == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.03)


def test_numbers_are_a_linear_regression():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 30))
    y += x
    found = permanova(distances(y[:, None]), x, continuous=True)
    assert found.r2 == pytest.approx(stats.pearsonr(x, y).statistic ** 2)
    assert permanova(distances(y[:, None]), 7 * x - 3, continuous=True).r2 == pytest.approx(found.r2)


def test_the_p_value_is_that_of_all_permutations():
    rng = np.random.default_rng(2)
    x, groups = rng.normal(size=(7, 3)), np.array([0, 0, 0, 1, 1, 1, 1])
    d2 = distances(x) ** 2

    def within(labels):
        return sum(d2[np.ix_(labels == g, labels == g)].sum() / 2 / (labels == g).sum() for g in (0, 1))

    all_of_them = [within(groups[list(p)]) for p in itertools.permutations(range(7))]
    expected = np.mean(np.array(all_of_them) <= within(groups) + 1e-9)
    found = permanova(distances(x), groups, permutations=4000)
    assert found.p_value == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3)
    assert found.r2 == pytest.approx(1 - within(groups) / (d2.sum() / 2 / 7))


def test_a_test_without_effect_rejects_as_often_as_it_says():
    rng = np.random.default_rng(3)
    groups = [0, 1] * 8
    p = [permanova(distances(rng.normal(size=(16, 2))), groups, permutations=99, seed=i).p_value for i in range(300)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.055)


@pytest.mark.parametrize(
    ("d", "values", "message"),
    [
        (np.ones((3, 2)), [1, 2, 2], r"must be a square, symmetric matrix.*\(3, 2\)"),
        (np.full((4, 4), np.nan), [1, 1, 2, 2], "with NaN or infinity"),
        (1 - np.eye(4), [1, 1, 2], "4 models and 3 values"),
        (1 - np.eye(4), ["a"] * 4, "All models have the same value"),
        (1 - np.eye(4), list("abcd"), "Each model has a value of its own"),
    ],
)
def test_wrong_input_is_an_error(d, values, message):
    with pytest.raises(ValueError, match=message):
        permanova(d, values)


def test_wrong_numbers_are_errors():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        permanova(1 - np.eye(4), [1, 1, 2, 2], permutations=0)
    with pytest.raises(ValueError, match="`values` holds NaN"):
        permanova(1 - np.eye(4), [1, 1, 2, np.nan], continuous=True)
