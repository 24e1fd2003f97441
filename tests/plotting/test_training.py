"""Curves are means over seeds with a band, layer trends follow pairs of layers, accuracies have t intervals."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.ticker import MultipleLocator
from pictures import heatmap_matrix
from scipy import stats

from cka_probe.plotting import plot_accuracies, plot_layer_trends, plot_training_curves
from cka_probe.similarity.matrix import SimilarityMatrix


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    lines = [(m, s, e, rng.random()) for m in ("KD", "CE") for s in range(3) for e in range(1, 5)]
    return pd.DataFrame(lines, columns=["method", "seed", "epoch", "test_accuracy"])


class TestTrainingCurves:
    def test_means_bands_and_names(self, histories):
        ax = plot_training_curves(histories)
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["KD", "CE"]  # in the order of the table
        means = histories.groupby(["method", "epoch"])["test_accuracy"].mean()
        np.testing.assert_allclose(ax.lines[0].get_ydata(), means["KD"])
        np.testing.assert_allclose(ax.lines[1].get_ydata(), means["CE"])
        assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()  # different in a grey print too
        spread = histories.groupby(["method", "epoch"])["test_accuracy"].std()
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx((means["KD"] + spread["KD"]).max())
        assert heights.min() == pytest.approx((means["KD"] - spread["KD"]).min())
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test accuracy")

    @pytest.mark.parametrize(
        ("errorbar", "title", "bands"),
        [
            (("sd", 1), "mean ± 1 sd, 3 seeds", 2),
            (("sd", 2), "mean ± 2 sd, 3 seeds", 2),
            ("se", "mean ± 1 se, 3 seeds", 2),
            (("ci", 90), "mean and 90 % interval, 3 seeds", 2),
            (("pi", 100), "mean and range, 3 seeds", 2),
            (None, "mean of 3 seeds", 0),
        ],
    )
    def test_legend_says_what_the_band_is(self, histories, errorbar, title, bands):
        ax = plot_training_curves(histories, errorbar=errorbar)
        assert ax.get_legend().get_title().get_text() == title
        assert len(ax.collections) == bands

    def test_counts_seeds_honestly(self, histories):
        fewer = histories[(histories["method"] == "CE") | (histories["seed"] < 2)]
        assert plot_training_curves(fewer).get_legend().get_title().get_text() == "mean ± 1 sd, 2 to 3 seeds"
        one = histories[histories["seed"] == 0]
        assert plot_training_curves(one).get_legend().get_title().get_text() == "1 seed"
        assert plot_training_curves(one.drop(columns="seed")).get_legend().get_title().get_text() == "method"

    def test_other_columns_axes_and_keywords(self, histories):
        _, ax = plt.subplots()
        table = histories.rename(columns={"method": "loss", "epoch": "step", "test_accuracy": "cka"})
        assert plot_training_curves(table, metric="cka", by="loss", x="step", ax=ax, linewidth=3) is ax
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.lines[0].get_linewidth()) == ("step", "cka", 3)

    def test_refuses(self, histories):
        with pytest.raises(ValueError, match="`histories` lacks the column 'loss'; it has method, seed, epoch"):
            plot_training_curves(histories, metric="loss")
        with pytest.raises(ValueError, match="There is nothing to draw: `histories` is empty"):
            plot_training_curves(histories.iloc[:0])
        with pytest.raises(TypeError, match="`histories` must be a pandas DataFrame, got dict"):
            plot_training_curves({})


def checkpoint(scale, names=("conv1", "conv2", "fc"), columns=None, **kwargs):
    values = scale * np.linspace(0.5, 1, len(names) ** 2).reshape(len(names), -1)
    return SimilarityMatrix(values, list(names), list(columns or names), **kwargs)


class TestLayerTrends:
    def test_counterparts_by_name(self):
        steps = {0: checkpoint(0.1), 10: checkpoint(0.5), 40: checkpoint(1)}
        ax = plot_layer_trends(steps, xlabel="epoch")
        assert [line.get_label() for line in ax.lines] == ["conv1", "conv2", "fc"]
        for i, line in enumerate(ax.lines):
            np.testing.assert_allclose(line.get_xdata(), [0, 10, 40])  # epochs keep their distances
            np.testing.assert_allclose(line.get_ydata(), [m.values[i, i] for m in steps.values()])
        assert len({line.get_marker() for line in ax.lines}) == 3
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["conv1", "conv2", "fc"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "CKA")

    def test_counterparts_by_place_and_chosen_pairs(self):
        steps = {"start": checkpoint(0.1, columns="abc"), "end": checkpoint(1, columns="abc")}
        ax = plot_layer_trends(steps)
        ax.figure.canvas.draw()
        assert [line.get_label() for line in ax.lines] == ["conv1 × a", "conv2 × b", "fc × c"]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["start", "end"]
        ax = plot_layer_trends(steps, pairs=[("fc", "a")], linewidth=4)
        assert ax.lines[0].get_label() == "fc × a"
        assert ax.lines[0].get_linewidth() == 4
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [m.values[2, 0] for m in steps.values()])

    def test_bands_are_confidence_intervals(self):
        error = np.full((3, 3), 0.02)
        steps = {i: checkpoint(0.5, standard_error=error, meta={"degrees_of_freedom": 5}) for i in (1, 2)}
        ax = plot_layer_trends(steps, level=0.9)
        assert len(ax.collections) == 3
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(0.25 + stats.t(5).ppf(0.95) * 0.02)
        assert not plot_layer_trends({1: checkpoint(0.5)}).collections

    def test_many_layers_get_a_colour_bar(self):
        names = [f"layer{i}" for i in range(30)]
        ax = plot_layer_trends({0: checkpoint(0.5, names), 1: checkpoint(1, names)})
        ax.figure.canvas.draw()
        assert ax.get_legend() is None
        labels = [t.get_text() for t in ax.child_axes[0].get_yticklabels() if t.get_text()]
        assert labels == ["layer0", "layer6", "layer12", "layer17", "layer23", "layer29"]

    def test_undefined_is_a_gap(self):
        values = np.array([[np.nan]])
        ax = plot_layer_trends({0: SimilarityMatrix(values, ["a"], ["a"]), 1: SimilarityMatrix([[1.0]], ["a"], ["a"])})
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 1])

    def test_refuses(self):
        with pytest.raises(ValueError, match="There is nothing to draw: `matrices` is empty"):
            plot_layer_trends({})
        with pytest.raises(ValueError, match="There is nothing to draw: `pairs` is empty"):
            plot_layer_trends({0: checkpoint(1)}, pairs=[])
        with pytest.raises(ValueError, match="Layer 'nope' is not among the columns of checkpoint 0"):
            plot_layer_trends({0: checkpoint(1)}, pairs=[("fc", "nope")])
        with pytest.raises(ValueError, match="Layer 'conv2' is not among the rows of checkpoint 7"):
            plot_layer_trends({0: checkpoint(1), 7: checkpoint(1, ["conv1"])})
        wide = SimilarityMatrix(np.ones((1, 2)), ["a"], ["b", "c"])
        with pytest.raises(
            ValueError, match=r"the matrix has 1 rows and 2 columns, so layers have no counterparts\. Say"
        ):
            plot_layer_trends({0: wide})


@pytest.fixture
def accuracies():
    return pd.DataFrame(
        {
            "method": ["CE", "CE", "CE", "RCKA", "RCKA", "RCKA", "KD"],
            "seed": [0, 1, 2, 0, 1, 2, 0],
            "accuracy": [0.70, 0.72, 0.74, 0.80, 0.80, 0.83, 0.75],
        }
    )


class TestAccuracies:
    def test_bars_are_means_in_the_order_of_the_table(self, accuracies):
        ax = plot_accuracies(accuracies)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["CE", "RCKA", "KD"]
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.72, 0.81, 0.75])
        assert ax.yaxis_inverted()  # the first at the top
        assert ax.get_xlim()[0] == 0

    def test_lines_are_student_t_intervals(self, accuracies):
        ax = plot_accuracies(accuracies, level=0.9)
        ends = [c for c in ax.containers if hasattr(c, "has_xerr")]
        assert len(ends) == 2  # one seed has no interval
        (segment,) = ends[0].lines[2][0].get_segments()
        half = stats.t(2).ppf(0.95) * 0.02 / np.sqrt(3)
        np.testing.assert_allclose(segment[:, 0], [0.72 - half, 0.72 + half])
        assert "line: 90 % interval" in ax.get_xlabel()

    def test_every_seed_is_a_circle(self, accuracies):
        ax = plot_accuracies(accuracies)
        circles = [line for line in ax.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(sorted(circles[1].get_xdata()), [0.80, 0.80, 0.83])
        assert len(set(circles[1].get_ydata())) == 3  # seeds with equal values are drawn at different heights

    def test_numbers_beside_the_bars(self, accuracies):
        texts = [t.get_text() for t in plot_accuracies(accuracies).texts]
        assert texts == ["72.0 ± 2.0", "81.0 ± 1.7", "75.0 (1 seed)"]

    def test_percent_only_for_fractions(self, accuracies):
        accuracies["accuracy"] *= 100
        ax = plot_accuracies(accuracies)
        assert ax.texts[0].get_text() == "72.0 ± 2.0"
        ax.figure.canvas.draw()
        assert not any("%" in t.get_text() for t in ax.get_xticklabels())

    def test_points_where_the_axis_does_not_start_at_zero(self, accuracies):
        ax = plot_accuracies(accuracies, from_zero=False)
        assert not ax.patches
        assert ax.get_xlim()[0] > 0.5
        assert "diamond: mean" in ax.get_xlabel()
        assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"] == pytest.approx(
            [0.72, 0.81, 0.75]
        )

    def test_references_are_lines(self, accuracies):
        ax = plot_accuracies(accuracies, references={"teacher": 0.9, "chance": 0.1})
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["teacher 90.0", "chance 10.0"]
        assert ax.get_legend().get_lines()[0].get_linestyle() != ax.get_legend().get_lines()[1].get_linestyle()

    def test_given_axes_and_keywords(self, accuracies):
        _, ax = plt.subplots()
        assert plot_accuracies(accuracies, ax=ax, hatch="//") is ax
        assert ax.patches[0].get_hatch() == "//"

    def test_refuses(self, accuracies):
        with pytest.raises(ValueError, match="`table` lacks the column 'score'"):
            plot_accuracies(accuracies, value="score")
        with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1, got 95"):
            plot_accuracies(accuracies, level=95)
        with pytest.raises(ValueError, match="`table` is empty"):
            plot_accuracies(accuracies.iloc[:0])
        with pytest.raises(TypeError, match="`table` must be a pandas DataFrame, got list"):
            plot_accuracies([1])


@pytest.mark.parametrize(("steps", "whole"), [((0, 1, 2, 3), True), ((0, 1), True), ((5,), True), ((0.5, 1.5), False)])
def test_there_is_no_epoch_two_and_a_half(steps, whole):
    matrices = {step: heatmap_matrix(3, shift=0.1 * step) for step in steps}
    table = pd.DataFrame({"method": "KD", "seed": 0, "epoch": steps, "test_accuracy": 0.5})
    for ax in (plot_layer_trends(matrices, xlabel="epoch"), plot_training_curves(table)):
        ax.figure.canvas.draw()
        low, high = ax.get_xlim()
        ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() for tick in ticks) is whole


def test_ticks_of_ones_own_axes_stay():
    steps = [1, 10, 100, 1000]
    table = pd.DataFrame({"method": "KD", "seed": 0, "epoch": steps, "test_accuracy": 0.5})
    _, (logarithmic, own) = plt.subplots(1, 2)
    logarithmic.set_xscale("log")
    own.xaxis.set_major_locator(MultipleLocator(250))
    for ax, expected in ((logarithmic, [1, 10, 100, 1000]), (own, [0, 250, 500, 750, 1000])):
        plot_training_curves(table, ax=ax)
        assert [t for t in ax.get_xticks() if -1 < t < 1001 and t >= (1 if expected[0] else 0)] == expected
