"""Bars of costs: lengths, texts, the line of the forward passes, and refusals."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cka_probe.plotting import plot_costs, plot_time_and_memory


@pytest.fixture
def costs():
    return pd.DataFrame(
        {
            "peer": ["ours", "fast", "slow", "ours", "fast", "slow"],
            "case": ["ResNet-18"] * 3 + ["ViT"] * 3,
            "seconds": [1.1, 1.0, 9.0, 2.2, 2.1, np.nan],
            "ratio_to_floor": [1.1, 1.0, 9.0, 1.1, 1.05, np.nan],
            "peak_mb": [300, 310, 4000, 500, 505, np.nan],
            "max_error": [1e-8, 0.97, 0.07, 1e-8, 2e-8, np.nan],
        }
    )


class TestCosts:
    def test_bars_texts_and_floor(self, costs):
        ax = plot_costs(costs)
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, [1.1, 1.1, 1.0, 1.05, 9.0, np.nan])
        assert [t.get_text() for t in ax.texts] == [
            "1.1",
            "1.1",
            "1, wrong by 1",
            "1.05",
            "9, wrong by 0.07",
            "failed",
        ]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["ResNet-18", "ViT"]
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ours", "fast", "slow"]
        assert len({bar.get_hatch() for bar in ax.patches}) == 3  # different in a grey print too
        assert float(ax.lines[0].get_xdata()[0]) == 1  # the forward passes alone
        assert ax.get_xscale() == "linear"
        assert ax.get_xlabel() == "time / time of the forward passes alone"

    def test_bars_of_a_case_stand_together_and_do_not_touch_the_next(self, costs):
        spans = {}
        for bar, case in zip(plot_costs(costs).patches, ["ResNet-18", "ViT"] * 3, strict=True):
            spans.setdefault(case, []).append((bar.get_y(), bar.get_y() + bar.get_height()))
        assert max(end for _, end in spans["ResNet-18"]) < 0.5 < min(start for start, _ in spans["ViT"])

    def test_logarithmic_from_the_floor_when_far_apart(self, costs):
        costs.loc[2, "ratio_to_floor"] = 200
        ax = plot_costs(costs)
        assert ax.get_xscale() == "log"
        assert {bar.get_x() for bar in ax.patches} == {1.0}
        np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in ax.patches][:5], [1.1, 1.1, 1, 1.05, 200])
        ax.figure.canvas.draw()
        shown = [t.get_text() for t in ax.get_xticklabels() if t.get_text()]
        assert "1" in shown
        assert "100" in shown

    def test_other_values_tolerance_and_keywords(self, costs):
        _, ax = plt.subplots()
        assert plot_costs(costs, value="peak_mb", tolerance=None, ax=ax, alpha=0.5) is ax
        assert [t.get_text() for t in ax.texts] == ["300", "500", "310", "505", "4,000", "failed"]
        assert ax.get_xlabel() == "peak memory (MB)"
        assert ax.patches[0].get_alpha() == 0.5

    def test_tables_without_errors(self, costs):
        assert plot_costs(costs.drop(columns="max_error")).texts[2].get_text() == "1"

    def test_values_that_are_not_finite_are_said_in_words(self, costs):
        costs.loc[1, "max_error"] = np.inf
        assert plot_costs(costs).texts[2].get_text() == "1, values not finite"

    def test_time_and_memory_side_by_side(self, costs):
        time, memory = plot_time_and_memory(costs)
        assert (time.get_xlabel(), memory.get_xlabel()) == (
            "time / time of the forward passes alone",
            "peak memory (MB)",
        )
        assert (time.get_legend() is None, memory.get_legend() is None) == (False, True)
        assert not any("wrong" in t.get_text() for t in memory.texts)
        time.figure.canvas.draw()
        assert not any(t.get_visible() and t.get_text() for t in memory.get_yticklabels())
        with pytest.raises(ValueError, match="`axes` must hold two: time and memory; got 1"):
            plot_time_and_memory(costs, axes=[plt.subplots()[1]])

    def test_refuses(self, costs):
        with pytest.raises(ValueError, match="`table` has 'ours' twice in the case 'ResNet-18'"):
            plot_costs(pd.concat([costs, costs.iloc[:1]]))
        with pytest.raises(ValueError, match="`table` lacks the column 'watts'"):
            plot_costs(costs, value="watts")
