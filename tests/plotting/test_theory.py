"""The corridor and the bounds are drawn as docs/theory.md, section 7, states them."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from pictures import brute_force_gram

from cka_probe.plotting import plot_bound_slack, plot_bounds_along_training, plot_corridor, plot_gram_pairs


def real_points(count=40):
    """CKA, MMD² with the quadratic kernel (T3) and rank of random pairs of features, by their definitions."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        x = rng.normal(size=(12, 3))
        y = x + rng.normal(size=(12, 3)) * i / 10
        k, m = brute_force_gram(x.tolist()), brute_force_gram(y.tolist())
        squared = ((k @ k - m @ m) ** 2).sum()
        lines.append(
            ((k * m).sum(), squared, np.linalg.matrix_rank(k - m, tol=1e-9), "random" if i % 2 else "training")
        )
    return pd.DataFrame(lines, columns=["cka", "mmd_squared", "rank", "source"])


class TestCorridor:
    def test_curves_are_the_theorem(self):
        ax = plot_corridor(real_points())
        c = ax.lines[0].get_xdata()
        np.testing.assert_allclose(ax.lines[0].get_ydata(), 2 * (1 - c**2))
        np.testing.assert_allclose(ax.lines[1].get_ydata(), 4 * (1 - c) ** 2 / 6)
        assert ax.lines[1].get_label() == "4(1 − c)² / 6"

    def test_real_pairs_lie_between(self):
        ax = plot_corridor(real_points())
        assert ax.get_title() == ""
        points = [c for c in ax.collections if c.get_label() in ("random", "training")]
        assert [len(c.get_offsets()) for c in points] == [20, 20]

    def test_points_outside_are_counted(self):
        table = pd.DataFrame({"cka": [0.5, 0.5, 0.5], "mmd_squared": [1.6, 0.01, 1.0], "rank": [4, 4, 4]})
        assert plot_corridor(table).get_title() == "2 of 3 points outside"

    def test_each_point_is_judged_by_its_own_rank(self):
        # 4 * 0.25 / rank: 0.5 for rank 2, 0.05 for rank 20. The drawn curve is that of the larger rank.
        table = pd.DataFrame({"cka": [0.5, 0.5], "mmd_squared": [0.4, 0.4], "rank": [2, 20]})
        assert plot_corridor(table).get_title() == "1 of 2 points outside"

    def test_without_rank_there_is_no_lower_curve(self):
        table = pd.DataFrame({"cka": [0.5], "mmd_squared": [0.001]})
        ax = plot_corridor(table)
        assert len(ax.lines) == 1
        assert ax.get_title() == ""
        assert len(plot_corridor(table, rank=5).lines) == 2

    def test_negative_cka_is_shown(self):
        ax = plot_corridor(pd.DataFrame({"cka": [-0.1], "mmd_squared": [1.0]}))
        assert ax.lines[0].get_xdata()[0] == -0.1

    def test_axes_keywords_and_refusals(self):
        _, ax = plt.subplots()
        table = real_points(4)
        assert plot_corridor(table, ax=ax, alpha=0.5) is ax
        assert ax.collections[-1].get_alpha() == 0.5
        with pytest.raises(ValueError, match="`table` lacks the column 'mmd_squared'"):
            plot_corridor(table.drop(columns="mmd_squared"))


class TestBounds:
    def test_slack_of_each_bound(self):
        table = pd.DataFrame(
            {
                "tau_squared": [1, 1, 1, 4, 4, 4, 1, 4],
                "slack": [1, 2, 9, 4, 5, 6, 3, 7],
                "bound": ["T1"] * 6 + ["conjecture"] * 2,
            }
        )
        ax = plot_bound_slack(table)
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 5])  # medians
        np.testing.assert_allclose(ax.lines[1].get_ydata(), [3, 7])
        assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
        assert len(ax.collections) == 1  # a bound with one row for each bandwidth has no band
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (1, 9)
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["T1", "conjecture"]

    def test_slack_refuses_what_a_logarithm_cannot_show(self):
        with pytest.raises(ValueError, match="`slack` must be positive for a logarithmic axis; its smallest is -1"):
            plot_bound_slack(pd.DataFrame({"tau_squared": [1, 2], "slack": [1, -1], "bound": "T1"}))

    def test_along_training(self):
        table = pd.DataFrame({"epoch": [1, 1, 2], "mmd_squared": [0.2, 0.4, 0.1], "T1": [1, 1, 0.5], "T4": [2, 4, 1]})
        ax = plot_bounds_along_training(table, bounds=["T1", "T4"])
        assert [line.get_label() for line in ax.lines] == ["MMD²", "T1", "T4"]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.3, 0.1])  # the mean over seeds
        np.testing.assert_allclose(ax.lines[2].get_ydata(), [3, 1])
        assert ax.lines[0].get_linestyle() == "-"
        assert len({line.get_linestyle() for line in ax.lines}) == 3
        assert ax.get_yscale() == "log"
        assert ax.get_title() == ""

    def test_along_training_counts_what_it_cannot_show(self):
        table = pd.DataFrame({"epoch": [1, 2, 3], "mmd_squared": [0.2, -0.001, 0.1], "T1": [1, 1, 1]})
        ax = plot_bounds_along_training(table, bounds=["T1"])
        assert ax.get_title() == "1 values ≤ 0 not shown"
        assert np.isnan(ax.lines[0].get_ydata()[1])

    def test_along_training_refuses(self):
        with pytest.raises(ValueError, match="`table` lacks the column 'T9'"):
            plot_bounds_along_training(pd.DataFrame({"epoch": [1], "mmd_squared": [1]}), bounds=["T9"])


def test_pictures_leave_the_random_state_and_settings_alone():
    settings, state = dict(mpl.rcParams), np.random.get_state()[1].copy()  # noqa: NPY002
    plot_corridor(real_points(4))
    plot_gram_pairs(np.eye(3), np.eye(3))
    assert dict(mpl.rcParams) == settings
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
