"""Grids share one scale, differences have 0 in the middle, errors are drawn beside values."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cka_probe.plotting import plot_before_after, plot_difference, plot_heatmap_grid, plot_heatmap_with_error
from cka_probe.similarity.matrix import SimilarityMatrix


def make(values, **kwargs):
    values = np.asarray(values, dtype=float)
    rows, columns = [f"s{i}" for i in range(len(values))], [f"t{i}" for i in range(values.shape[1])]
    meta = {"model_x": "student", "model_y": "teacher"}
    return SimilarityMatrix(values, rows, columns, **{"meta": meta} | kwargs)


def bars(axes):
    return [bool(ax.child_axes) for ax in axes]


class TestGrid:
    def test_one_scale_for_all(self):
        axes = plot_heatmap_grid({"a": make([[0.2, 0.4]]), "b": make([[-0.1, 1.3]]), "c": make([[0, 0]])})
        assert {ax.images[0].get_clim() for ax in axes} == {(-0.1, 1.3)}
        assert [ax.get_title() for ax in axes] == ["a", "b", "c"]
        axes = plot_heatmap_grid([make([[0.2]]), make([[0.3]])], vmax=0.5)
        assert {ax.images[0].get_clim() for ax in axes} == {(0, 0.5)}

    def test_a_colour_bar_ends_each_row(self):
        panels = [make(np.eye(3))] * 5
        assert bars(plot_heatmap_grid(panels, columns=2)) == [False, True, False, True, True]
        assert bars(plot_heatmap_grid(panels, columns=2, colorbar=False)) == [False] * 5
        assert bars(plot_heatmap_grid(panels[:2], axes=plt.subplots(1, 2)[1])) == [False, True]

    def test_unused_places_are_empty(self):
        axes = plot_heatmap_grid([make(np.eye(3))] * 3, columns=2)
        assert [ax for ax in axes[0].figure.axes if ax.images] == list(axes)

    def test_layers_that_all_panels_share_are_named_once(self):
        axes = plot_heatmap_grid([make(np.eye(3))] * 4, columns=2)
        axes[0].figure.canvas.draw()
        shown = [
            (any(t.get_visible() and t.get_text() for t in ax.get_yticklabels()), ax.get_ylabel(), ax.get_xlabel())
            for ax in axes
        ]
        assert [s[0] for s in shown] == [True, False, True, False]
        assert [s[1] for s in shown] == ["student", "", "student", ""]
        assert [s[2] for s in shown] == ["", "", "teacher", "teacher"]

    def test_layers_that_differ_are_named_in_each_panel(self):
        other = SimilarityMatrix(np.eye(3), list("abc"), list("def"))
        axes = plot_heatmap_grid([make(np.eye(3)), other], columns=2)
        axes[0].figure.canvas.draw()
        assert [[t.get_text() for t in ax.get_yticklabels()] for ax in axes] == [["s0", "s1", "s2"], ["a", "b", "c"]]

    def test_numbers_fit_the_drawn_cells(self):
        axes = plot_heatmap_grid([make(np.full((6, 6), -0.25))] * 4, columns=2)
        axes[0].figure.canvas.draw()
        for ax in axes:
            cell = ax.get_window_extent().width / 6
            assert len(ax.texts) == 36
            assert max(text.get_window_extent().width for text in ax.texts) < cell

    def test_keywords_reach_every_heatmap(self):
        axes = plot_heatmap_grid([make(np.eye(2))] * 2, cmap="cividis", annotate=False)
        assert {ax.images[0].get_cmap().name for ax in axes} == {"cividis"}
        assert not any(ax.texts for ax in axes)

    @pytest.mark.parametrize(
        ("matrices", "kwargs", "match"),
        [
            ([], {}, "There is nothing to draw: `matrices` is empty"),
            (
                [make([[1]]), make([[1]], measure="nbs")],
                {},
                "different measures cannot share one colour scale: cka, nbs",
            ),
            ([make([[1]])], {"columns": 0}, "`columns` must be at least 1, got 0"),
        ],
    )
    def test_refuses(self, matrices, kwargs, match):
        with pytest.raises(ValueError, match=match):
            plot_heatmap_grid(matrices, **kwargs)

    def test_refuses_too_few_axes(self):
        _, ax = plt.subplots()
        with pytest.raises(ValueError, match="`axes` must hold 2 axes, one for each heatmap; got 1"):
            plot_heatmap_grid([make([[1]])] * 2, axes=[ax])


class TestDifference:
    def test_centred_at_zero(self):
        ax = plot_difference(make([[0.5, 0.2]]), make([[0.4, 0.5]]))
        np.testing.assert_allclose(ax.images[0].get_array().data, [[0.1, -0.3]])
        np.testing.assert_allclose(ax.images[0].get_clim(), (-0.3, 0.3))
        assert ax.images[0].colorbar.ax.get_ylabel() == "change of CKA"
        assert [t.get_text() for t in ax.texts] == ["0.10", "−0.30"]
        middle = np.array(ax.images[0].get_cmap()(0.5)[:3])
        assert (middle > 0.9).all()  # no change is nearly white

    def test_limit_is_kept(self):
        ax = plot_difference(make([[0.5]]), make([[0.4]]), limit=1)
        assert ax.images[0].get_clim() == (-1, 1)

    def test_undefined_in_either_is_undefined(self):
        ax = plot_difference(make([[0.5, np.nan, 0.1]]), make([[np.nan, 0.4, 0.1]]))
        np.testing.assert_array_equal(ax.images[0].get_array().mask, [[True, True, False]])

    def test_no_change_at_all(self):
        assert plot_difference(make([[0.5]]), make([[0.5]])).images[0].get_clim() == (-1, 1)

    def test_falls_are_hatched_where_no_numbers_are_written(self):
        before, after = np.zeros((40, 40)), np.full((40, 40), 0.5)
        after[3, 4:7] = -0.5
        after[9, 9] = -0.01  # too small to be hatched
        ax = plot_difference(make(after), make(before))
        (patches,) = ax.collections
        assert patches.get_hatch() == "---"
        (path,) = patches.get_paths()
        np.testing.assert_allclose(path.get_extents().get_points(), [[3.5, 2.5], [6.5, 3.5]])

    @pytest.mark.parametrize(
        ("reference", "kwargs", "match"),
        [
            (make([[1, 2]]), {}, "same layers in the same order; their columns differ: 1 and 2 of them"),
            (SimilarityMatrix([[1]], ["s0"], ["x"]), {}, "their columns differ: t0 and x"),
            (SimilarityMatrix([[1]], ["y"], ["t0"]), {}, "their rows differ: s0 and y"),
            (make([[1]], measure="nbs"), {}, "A difference of different measures means nothing: cka − nbs"),
            (make([[1]]), {"limit": 0}, "`limit` must be positive, got 0"),
        ],
    )
    def test_refuses(self, reference, kwargs, match):
        with pytest.raises(ValueError, match=match):
            plot_difference(make([[1]]), reference, **kwargs)


class TestBeforeAfter:
    def test_three_panels(self):
        before, after = make([[0.1, 0.2], [0.3, 0.4]]), make([[0.9, 0.2], [0.3, 1.1]])
        axes = plot_before_after(before, after, titles=("untrained", "RCKA"))
        assert [ax.get_title() for ax in axes] == ["untrained", "RCKA", "RCKA − untrained"]
        assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim() == (0, 1.1)
        np.testing.assert_allclose(axes[2].images[0].get_array().data, after.values - before.values)
        assert bars(axes) == [False, True, True]

    def test_on_given_axes_with_keywords(self):
        _, given = plt.subplots(1, 3)
        axes = plot_before_after(make([[0.1]]), make([[0.2]]), axes=given, annotate=False)
        assert list(axes) == list(given)
        assert not any(ax.texts for ax in axes)
        with pytest.raises(ValueError, match="`axes` must hold 3 axes"):
            plot_before_after(make([[0.1]]), make([[0.2]]), axes=given[:2])

    def test_refuses_other_layers(self):
        with pytest.raises(ValueError, match="same layers in the same order"):
            plot_before_after(make([[1]]), make([[1, 2]]))


class TestWithError:
    def test_two_panels(self):
        matrix = make([[0.5, 0.6]], standard_error=[[0.01, np.nan]])
        values, errors = plot_heatmap_with_error(matrix)
        assert errors.images[0].get_clim() == (0, 0.01)
        assert errors.images[0].colorbar.ax.get_ylabel() == "standard error of CKA"
        np.testing.assert_array_equal(errors.images[0].get_array().mask, [[False, True]])
        assert values.images[0].get_cmap().name != errors.images[0].get_cmap().name

    def test_refuses(self):
        with pytest.raises(
            TypeError, match="`matrix` must be a SimilarityMatrix, which holds standard errors; got ndarray"
        ):
            plot_heatmap_with_error(np.eye(2))
        with pytest.raises(ValueError, match=r"has no standard error to draw\. Use plot_heatmap"):
            plot_heatmap_with_error(make([[1]]))
        with pytest.raises(ValueError, match="`axes` must hold 2 axes"):
            plot_heatmap_with_error(make([[1]], standard_error=[[0.1]]), axes=[plt.subplots()[1]])
