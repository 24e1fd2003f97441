"""The colour scale spans all values, and the colour bar names its ends, the measure and the chance level."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import LogNorm
from pictures import colour_bar, drawn, heatmap_matrix, written

from cka_probe.plotting import plot_heatmap


def drawn_at(figure, ax):
    figure.canvas.draw()
    return ax


class TestScale:
    def test_spans_zero_to_one_and_says_so(self):
        matrix = heatmap_matrix(4, values=np.full((4, 4), 0.4), meta={"estimator": "unbiased"})
        ax = drawn(plot_heatmap(matrix))
        assert ax.images[0].get_clim() == (0, 1)
        bar = colour_bar(ax)
        assert written(bar.yaxis)[0] == "0"
        assert written(bar.yaxis)[-1] == "1"
        assert bar.get_ylabel() == "CKA (unbiased)"

    def test_grows_to_values_outside_instead_of_clipping_them(self):
        ax = drawn(plot_heatmap(heatmap_matrix(4, values=np.array([[-0.03, 0, 0, 1.2]] * 4))))
        assert ax.images[0].get_clim() == (-0.03, 1.2)
        assert written(colour_bar(ax).yaxis)[0] == "−0.03"
        assert written(colour_bar(ax).yaxis)[-1] == "1.2"

    def test_asked_clipping_shows_as_arrows(self):
        extends = []
        for vmin, vmax in ((None, None), (0.2, None), (None, 0.8), (0.2, 0.8)):
            ax = plot_heatmap(heatmap_matrix(4), vmin=vmin, vmax=vmax)
            extends.append(ax.images[0].colorbar.extend)
        assert extends == ["neither", "min", "max", "both"]
        assert ax.images[0].get_clim() == (0.2, 0.8)

    def test_a_norm_keeps_its_ends_and_ticks(self):
        ax = drawn(
            plot_heatmap(
                heatmap_matrix(3, values=np.full((3, 3), 0.5), chance=np.full((3, 3), 0.1)), norm=LogNorm(0.01, 1)
            )
        )
        assert ax.images[0].get_clim() == (0.01, 1)
        (chance,) = (text for text in colour_bar(ax).texts if text.get_text() == "chance")
        assert chance.xy == (0, pytest.approx(0.5))  # 0.1 is half way from 0.01 to 1

    def test_can_be_left_out(self):
        assert plot_heatmap(heatmap_matrix(4), colorbar=False).child_axes == []

    def test_is_as_tall_as_the_cells_are_drawn(self):
        _, ax = plt.subplots(figsize=(9, 3))
        drawn(plot_heatmap(heatmap_matrix(5), ax=ax))
        bar, cells = colour_bar(ax).get_window_extent(), ax.get_window_extent()
        assert bar.y0 == pytest.approx(cells.y0)
        assert bar.y1 == pytest.approx(cells.y1)
        assert 0 < bar.x0 - cells.x1 < 20

    def test_leaves_the_neighbour_alone(self):
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        plot_heatmap(np.eye(5), ax=left)
        plot_heatmap(np.eye(5), ax=right)
        fig.canvas.draw()
        renderer = fig.canvas.get_renderer()
        assert colour_bar(left).get_tightbbox(renderer).x1 < right.get_tightbbox(renderer).x0

    def test_stands_beside_its_cells_in_a_subfigure_too(self):
        figure = plt.figure(figsize=(8, 4), layout="constrained")
        right = figure.subfigures(1, 2)[1]
        ax = drawn_at(figure, plot_heatmap(np.eye(4), ax=right.subplots()))
        bar, cells = colour_bar(ax).get_window_extent(), ax.get_window_extent()
        assert 0 < bar.x0 - cells.x1 < 20
        assert bar.height == pytest.approx(cells.height)

    def test_axes_that_were_removed_are_refused(self):
        _, ax = plt.subplots()
        ax.remove()
        with pytest.raises(ValueError, match="`ax` belongs to no figure any more"):
            plot_heatmap(np.eye(2), ax=ax)

    def test_chance_level_is_marked_at_its_value(self):
        ax = plot_heatmap(heatmap_matrix(3, chance=np.full((3, 3), 0.3)))
        heights = {float(line.get_ydata()[0]) for line in colour_bar(ax).lines}
        assert heights == {0.3}
        assert "chance" in [text.get_text() for text in colour_bar(ax).texts]

    def test_chance_level_that_varies_is_a_range(self):
        chance = np.full((3, 3), 0.2)
        chance[0, 0], chance[1, 1] = 0.5, np.nan
        ax = plot_heatmap(heatmap_matrix(3, chance=chance))
        assert {float(line.get_ydata()[0]) for line in colour_bar(ax).lines} == {0.2, 0.5}

    def test_no_mark_without_chance(self):
        ax = plot_heatmap(heatmap_matrix(3))
        assert len(colour_bar(ax).lines) == 0
        assert "chance" not in [text.get_text() for text in colour_bar(ax).texts]
