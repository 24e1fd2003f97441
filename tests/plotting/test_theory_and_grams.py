"""The corridor, the bounds and the Gram pictures show what MATH.md says."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cka_probe.plotting import (
    centred_gram,
    plot_bound_slack,
    plot_bounds_along_training,
    plot_corridor,
    plot_gram,
    plot_gram_pairs,
)


def brute_force_gram(x):
    """HKH / ||HKH||_F by loops."""
    n = len(x)
    gram = [[sum(a * b for a, b in zip(x[i], x[j], strict=True)) for j in range(n)] for i in range(n)]
    rows = [sum(gram[i]) / n for i in range(n)]
    mean = sum(rows) / n
    centred = np.array([[gram[i][j] - rows[i] - rows[j] + mean for j in range(n)] for i in range(n)])
    return centred / np.sqrt((centred**2).sum())


def real_points(count=40):
    """CKA, the MMD² of theorem T3 and the rank, of random pairs of features, from their definition."""
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
        assert len(ax.collections) == 1  # one line a bandwidth has no band
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


class TestGrams:
    def test_centred_gram_is_its_definition(self):
        x = np.random.default_rng(1).normal(size=(7, 4))
        np.testing.assert_allclose(centred_gram(x), brute_force_gram(x.tolist()), atol=1e-14)

    @pytest.mark.parametrize("scale", [1e-200, 1e200])
    def test_centred_gram_of_extreme_scales(self, scale):
        x = np.random.default_rng(1).normal(size=(7, 4))
        np.testing.assert_allclose(centred_gram(x * scale), centred_gram(x), rtol=1e-9, atol=1e-12)

    def test_centred_gram_refuses(self):
        assert np.isnan(centred_gram(np.ones((3, 2)))).all()
        with pytest.raises(
            ValueError, match=r"`features` must have shape \(n, d\), got \(2, 2, 2\)\. Flatten maps first"
        ):
            centred_gram(np.ones((2, 2, 2)))
        with pytest.raises(ValueError, match="`features` holds NaN or infinity"):
            centred_gram([[np.nan]])

    def test_sorted_by_class(self):
        gram = np.arange(16.0).reshape(4, 4)
        ax = plot_gram(gram, labels=["dog", "cat", "dog", "cat"])
        order = [1, 3, 0, 2]  # in their order within a class
        np.testing.assert_array_equal(ax.images[0].get_array(), gram[np.ix_(order, order)])
        assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog"]
        np.testing.assert_allclose(ax.get_yticks(), [0.5, 2.5])
        assert len(ax.lines) == 2  # one line each way between two classes
        assert ax.images[0].origin == "upper"

    def test_unsorted_without_labels(self):
        gram = np.arange(16.0).reshape(4, 4)
        ax = plot_gram(gram, title="raw", colorbar=False)
        np.testing.assert_array_equal(ax.images[0].get_array(), gram)
        assert (len(ax.lines), ax.get_title(), ax.child_axes) == (0, "raw", [])

    def test_scale_is_centred_and_admits_what_lies_beyond(self):
        gram = np.eye(30) * 100 + 0.5
        ax = plot_gram(gram)
        assert ax.images[0].get_clim() == (-0.5, 0.5)  # what lies off the diagonal
        assert ax.images[0].colorbar.extend == "max"
        assert plot_gram(gram, limit=200).images[0].get_clim() == (-200, 200)
        assert plot_gram(np.eye(3)).images[0].get_clim() == (-1, 1)

    def test_as_many_class_names_as_have_room(self):
        ax = plot_gram(np.eye(300), labels=np.arange(300))
        ax.figure.canvas.draw()
        boxes = sorted((b.y0, b.y1) for b in (t.get_window_extent() for t in ax.get_yticklabels()))
        assert 5 < len(boxes) < 60
        assert all(after[0] > before[1] - 3 for before, after in pairwise(boxes))

    def test_refuses(self):
        for gram in (np.ones((2, 3)), np.ones(4), np.empty((0, 0))):
            with pytest.raises(ValueError, match=r"`gram` must have shape \(n, n\)"):
                plot_gram(gram)
        with pytest.raises(ValueError, match=r"`labels` must hold one class for each of the 2 samples, got \(3,\)"):
            plot_gram(np.eye(2), labels=[1, 2, 3])
        with pytest.raises(ValueError, match="`limit` must be positive, got -1"):
            plot_gram(np.eye(2), limit=-1)

    def test_pairs_show_the_cka_that_rcka_maximises(self):
        rng = np.random.default_rng(0)
        teacher, student = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
        labels = rng.integers(0, 3, 9)
        axes = plot_gram_pairs(teacher, student, labels=labels, class_names=list("wxyz"))
        assert axes.shape == (2, 2)
        intra = (brute_force_gram(teacher.tolist()) * brute_force_gram(student.tolist())).sum()
        inter = (brute_force_gram(teacher.T.tolist()) * brute_force_gram(student.T.tolist())).sum()
        assert axes[0, 0].get_title() == "teacher, 9 × 9 samples"
        assert axes[0, 1].get_title() == f"student, 9 × 9 samples: CKA {intra:.3f}"
        assert axes[1, 1].get_title() == f"student, 4 × 4 classes: CKA {inter:.3f}"
        order = np.argsort(labels, kind="stable")
        expected = brute_force_gram(teacher.tolist())[np.ix_(order, order)]
        np.testing.assert_allclose(axes[0, 0].images[0].get_array(), expected, atol=1e-14)
        for row in axes:
            assert row[0].images[0].get_clim() == row[1].images[0].get_clim()
        assert [t.get_text() for t in axes[1, 0].get_yticklabels()] == list("wxyz")

    def test_pairs_refuse(self):
        with pytest.raises(ValueError, match=r"must both have shape \(samples, classes\), got \(3, 2\) and \(3, 4\)"):
            plot_gram_pairs(np.ones((3, 2)), np.ones((3, 4)))
        with pytest.raises(ValueError, match="`axes` must hold four"):
            plot_gram_pairs(np.eye(3), np.eye(3), axes=[plt.subplots()[1]])
        with pytest.raises(ValueError, match=r"`class_names` must hold 3 names, got \(2,\)"):
            plot_gram_pairs(np.eye(3), np.eye(3), class_names=["a", "b"])


def test_pictures_leave_the_random_state_and_settings_alone():
    import matplotlib as mpl

    settings, state = dict(mpl.rcParams), np.random.get_state()[1].copy()  # noqa: NPY002
    plot_corridor(real_points(4))
    plot_gram_pairs(np.eye(3), np.eye(3))
    assert dict(mpl.rcParams) == settings
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
