"""Chosen layers, own names, one half of a matrix, best matches and scales of a heatmap."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from pictures import colour_bar, drawn, heatmap_matrix, written

from cka_probe.plotting import plot_before_after, plot_heatmap, plot_heatmap_grid, plot_heatmap_with_error
from cka_probe.similarity.matrix import SimilarityMatrix


def symmetric(count):
    matrix = heatmap_matrix(count)
    return SimilarityMatrix(matrix.values, matrix.rows, matrix.rows)


class TestLayers:
    def test_chosen_in_the_given_order(self):
        matrix = heatmap_matrix(3, 4)
        ax = drawn(plot_heatmap(matrix, rows=["layer2.1.conv1", "layer1.0.conv1"], columns="layer[23].*.conv2"))
        np.testing.assert_array_equal(ax.images[0].get_array(), matrix.values[[1, 0]][:, [1, 2]])
        assert written(ax.yaxis) == ["layer2.1.conv1", "layer1.0.conv1"]

    def test_own_names_by_mapping_and_by_function(self):
        matrix = heatmap_matrix(2)
        ax = drawn(plot_heatmap(matrix, labels={"layer1.0.conv1": "stem", "layer3.1.conv2": "top"}))
        assert (written(ax.yaxis), written(ax.xaxis)) == (["stem", "layer3.1.conv1"], ["layer1.0.conv2", "top"])
        ax = drawn(plot_heatmap(matrix, labels=lambda name: name.split(".")[1]))
        assert written(ax.yaxis) == ["0", "1"]
        axes = plot_heatmap_grid([matrix, matrix], labels=lambda name: name[-1])
        assert written(drawn(axes[0]).yaxis) == ["1", "1"]

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ({"layer1.0.conv": "x"}, ValueError, "Did you mean|layer1.0.conv1"),
            (["a", "b"], TypeError, "mapping of layers to names, or a function, got list"),
            (len, TypeError, "must be a string, got 14"),
        ],
    )
    def test_wrong_names_are_refused(self, labels, error, message):
        with pytest.raises(error, match=message):
            plot_heatmap(heatmap_matrix(2), labels=labels)
        assert not plt.get_fignums()

    def test_unknown_rows_are_refused(self):
        with pytest.raises(ValueError, match="No row matches 'layer9'"):
            plot_heatmap(heatmap_matrix(2), rows="layer9")

    def test_two_hundred_layers_have_few_names_and_their_number(self):
        ax = drawn(plot_heatmap(heatmap_matrix(200, meta={"model_x": "a", "model_y": "b"})))
        assert 6 <= len(written(ax.xaxis)) <= 11
        assert (ax.get_xlabel(), ax.get_ylabel()) == (
            "b: 200 layers in order of depth",
            "a: 200 layers in order of depth",
        )

    def test_depth_writes_numbers(self):
        ax = drawn(plot_heatmap(heatmap_matrix(30), layer_labels="depth"))
        assert written(ax.xaxis) == [str(i) for i in range(0, 30, 3)]
        assert written(drawn(plot_heatmap(heatmap_matrix(4), layer_labels="depth")).xaxis) == ["0", "1", "2", "3"]


class TestMask:
    @pytest.mark.parametrize(("mask", "hides"), [("upper", np.tril), ("lower", np.triu)])
    def test_hides_one_half_and_its_numbers(self, mask, hides):
        matrix = symmetric(4)
        ax = drawn(plot_heatmap(matrix, mask=mask))
        hidden = hides(np.ones((4, 4), dtype=bool), -1 if mask == "upper" else 1)
        np.testing.assert_array_equal(ax.images[0].get_array().mask, hidden)
        assert len(ax.texts) == 10
        assert not [c for c in ax.collections if isinstance(c, PatchCollection)]  # hidden is not undefined
        assert "undefined" not in ax.get_xlabel()

    def test_upper_is_above_the_diagonal_as_it_is_drawn(self):
        ax = drawn(plot_heatmap(symmetric(4), mask="upper"))
        rows, columns = np.nonzero(ax.images[0].get_array().mask)
        height = ax.transData.transform(np.stack([columns, rows], 1))
        diagonal = ax.transData.transform(np.stack([columns, columns], 1))
        assert (height[:, 1] > diagonal[:, 1]).all()

    def test_an_array_of_cells(self):
        matrix = heatmap_matrix(2, 3)
        mask = np.array([[True, False, False], [False, False, True]])
        np.testing.assert_array_equal(plot_heatmap(matrix, mask=mask).images[0].get_array().mask, mask)

    @pytest.mark.parametrize(
        ("matrix", "mask", "message"),
        [
            (heatmap_matrix(3), "upper", "not symmetric"),
            (SimilarityMatrix([[1, 0.2], [0.3, 1]], ["a", "b"], ["a", "b"]), "lower", "not symmetric"),
            (symmetric(3), "left", "'upper', 'lower', a bool array or None, got 'left'"),
            (symmetric(3), np.zeros((2, 2), dtype=bool), r"bool array of shape \(3, 3\)"),
        ],
    )
    def test_what_would_lose_values_is_refused(self, matrix, mask, message):
        with pytest.raises(ValueError, match=message):
            plot_heatmap(matrix, mask=mask)

    def test_before_after_and_errors_are_masked_alike(self):
        matrix = symmetric(3)
        for ax in plot_before_after(matrix, matrix, mask="upper"):
            assert ax.images[0].get_array().mask.sum() == 3
        error = SimilarityMatrix(matrix.values, matrix.rows, matrix.rows, standard_error=np.full((3, 3), 0.1))
        for ax in plot_heatmap_with_error(error, mask="lower"):
            assert ax.images[0].get_array().mask.sum() == 3


class TestBestMatch:
    def test_frames_the_largest_of_each_row_without_the_layer_itself(self):
        values = np.array([[1, 0.5, 0.7], [0.5, 1, 0.2], [0.7, 0.2, 1]])
        ax = drawn(plot_heatmap(SimilarityMatrix(values, list("abc"), list("abc")), best_match=True))
        (frames,) = (c for c in ax.collections if isinstance(c, PatchCollection))
        middles = [tuple(path.vertices[:4].mean(0).round(6)) for path in frames.get_paths()]
        assert middles == [(2, 0), (0, 1), (0, 2)]
        assert "framed: best match of each row" in ax.get_xlabel()

    def test_the_smallest_of_a_distance(self):
        matrix = SimilarityMatrix([[0.3, 0.1]], ["a"], ["b", "c"], measure="gulp", meta={"kind": "distance"})
        (frames,) = plot_heatmap(matrix, best_match=True).collections
        assert frames.get_paths()[0].vertices[:4].mean(0).round(6).tolist() == [1, 0]

    def test_small_cells_get_dots(self):
        ax = drawn(plot_heatmap(heatmap_matrix(100), best_match=True))
        assert ax.collections[0].get_offsets().tolist() == [[i, i] for i in range(100)]
        assert "dots: best match of each row" in ax.get_xlabel()

    def test_undefined_rows_have_none_and_masked_rows_are_refused(self):
        ax = plot_heatmap(SimilarityMatrix([[np.nan], [0.5]], ["a", "b"], ["c"]), best_match=True)
        assert len(ax.collections[-1].get_paths()) == 1
        with pytest.raises(ValueError, match="`best_match` needs whole rows"):
            plot_heatmap(symmetric(3), best_match=True, mask="upper")


class TestLimits:
    crowded = SimilarityMatrix([[0.8, 0.9], [0.85, 1.0]], ["a", "b"], ["c", "d"], chance=np.full((2, 2), 0.3))

    @pytest.mark.parametrize(
        ("limits", "ends", "says"),
        [
            ("auto", (0, 1), ""),
            ("full", (0, 1), ""),
            ("data", (0.8, 1), "colours span the values"),
            ("chance", (0.3, 1), "colours start at chance"),
            ((0.5, 0.9), (0.5, 0.9), ""),
        ],
    )
    def test_ends_of_the_scale_are_said_on_the_bar(self, limits, ends, says):
        ax = drawn(plot_heatmap(self.crowded, limits=limits))
        assert ax.images[0].get_clim() == ends
        assert colour_bar(ax).get_ylabel() == "\n".join(filter(None, ["CKA", says]))

    def test_values_that_fill_less_than_a_tenth_of_the_scale_get_a_scale_of_their_own(self):
        matrix = SimilarityMatrix([[0.93, 0.99]], ["a"], ["b", "c"])
        assert plot_heatmap(matrix).images[0].get_clim() == (0.93, 0.99)
        assert plot_heatmap(matrix, limits="full").images[0].get_clim() == (0, 1)
        tiny = SimilarityMatrix([[1e-4, 3e-4]], ["a"], ["b", "c"], measure="mmd_squared", meta={"kind": "distance"})
        assert plot_heatmap(tiny).images[0].get_clim() == (1e-4, 3e-4)
        assert plot_heatmap(SimilarityMatrix([[0.5, 0.5]], ["a"], ["b", "c"])).images[0].get_clim() == (0, 1)

    def test_panels_of_a_grid_share_one_scale(self):
        other = SimilarityMatrix([[0.6, 0.7], [0.65, 0.7]], ["a", "b"], ["c", "d"])
        axes = plot_heatmap_grid([self.crowded, other], limits="data")
        assert {ax.images[0].get_clim() for ax in axes} == {(0.6, 1)}
        assert [ax.images[0].get_clim() for ax in plot_before_after(self.crowded, other, limits="data")[:2]] == [
            (0.6, 1)
        ] * 2

    @pytest.mark.parametrize("limits", ["wide", (1, 0), (0.5,), None, (0, float("nan"))])
    def test_wrong_limits_are_refused(self, limits):
        with pytest.raises(ValueError, match="`limits` must be one of auto, full, data, chance, or"):
            plot_heatmap(self.crowded, limits=limits)

    def test_chance_must_be_known(self):
        with pytest.raises(ValueError, match="needs a matrix with chance levels"):
            plot_heatmap(heatmap_matrix(2), limits="chance")
