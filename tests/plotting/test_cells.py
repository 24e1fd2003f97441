"""Undefined cells are hatched; numbers are written where they fit and can be read."""

import numpy as np
from pictures import drawn, heatmap_matrix

from cka_probe.plotting import plot_heatmap
from cka_probe.plotting.cells import ink, rectangles


def cell_texts(ax):
    return {tuple(int(p) for p in text.get_position()): text.get_text() for text in ax.texts}


class TestUndefined:
    def test_hatched_not_coloured(self):
        values = np.full((4, 5), 0.5)
        values[2], values[:, 1] = np.nan, np.nan
        ax = plot_heatmap(heatmap_matrix(4, 5, values=values))
        np.testing.assert_array_equal(ax.images[0].get_array().mask, np.isnan(values))
        (patches,) = ax.collections
        assert patches.get_hatch() == "////"
        covered = np.zeros((4, 5), dtype=int)
        for path in patches.get_paths():
            box = path.get_extents()
            covered[round(box.y0 + 0.5) : round(box.y1 + 0.5), round(box.x0 + 0.5) : round(box.x1 + 0.5)] += 1
        np.testing.assert_array_equal(covered, np.isnan(values).astype(int))
        assert len(patches.get_paths()) == 3  # one row and the two parts of the column, not 8 cells

    def test_everything_undefined_still_draws(self):
        ax = drawn(plot_heatmap(heatmap_matrix(3, values=np.full((3, 3), np.nan))))
        assert ax.images[0].get_clim() == (0, 1)
        assert len(ax.collections) == 1
        assert not ax.texts

    def test_infinite_is_undefined_too(self):
        ax = plot_heatmap(np.array([[np.inf, 0.5]]))
        assert ax.images[0].get_clim() == (0, 1)
        assert len(ax.collections[0].get_paths()) == 1

    def test_nothing_hatched_when_all_is_defined(self):
        assert len(plot_heatmap(heatmap_matrix(3)).collections) == 0

    def test_rectangles_cover_exactly_the_marked_cells(self):
        rng = np.random.default_rng(0)
        for density in (0.1, 0.5, 0.9, 1.0):
            mask = rng.random((7, 9)) < density
            count = np.zeros(mask.shape, dtype=int)
            for r, c, h, w in rectangles(mask):
                count[r : r + h, c : c + w] += 1
            np.testing.assert_array_equal(count, mask)


class TestNumbers:
    def test_written_where_they_fit(self):
        matrix = heatmap_matrix(5)
        ax = plot_heatmap(matrix)
        texts = cell_texts(ax)
        assert len(texts) == 25
        assert texts[3, 1] == f"{matrix.values[1, 3]:.2f}"  # (column, row)

    def test_left_out_where_they_do_not(self):
        assert not plot_heatmap(heatmap_matrix(60)).texts
        assert len(plot_heatmap(heatmap_matrix(30), annotate=True).texts) == 900
        assert not plot_heatmap(heatmap_matrix(3), annotate=False).texts

    def test_stay_inside_their_cells(self):
        ax = drawn(plot_heatmap(heatmap_matrix(14, shift=0.05)))
        renderer = ax.figure.canvas.get_renderer()
        cell = ax.get_window_extent().width / 14
        assert len(ax.texts) == 196
        assert max(text.get_window_extent(renderer).width for text in ax.texts) < cell

    def test_signs(self):
        ax = plot_heatmap(np.array([[-0.05, -0.001, 0.001]]))
        assert list(cell_texts(ax).values()) == ["−0.05", "0.00", "0.00"]

    def test_undefined_cells_have_none(self):
        assert set(cell_texts(plot_heatmap(np.array([[np.nan, 0.25]])))) == {(1, 0)}

    def test_with_standard_error(self):
        ax = plot_heatmap(
            heatmap_matrix(2, values=np.full((2, 2), 0.5), standard_error=[[0.013, np.nan], [0, 0.1]]), annotate="error"
        )
        assert cell_texts(ax) == {(0, 0): "0.50\n±0.013", (1, 0): "0.50", (0, 1): "0.50\n±0", (1, 1): "0.50\n±0.1"}

    def test_read_on_every_colour(self):
        ax = plot_heatmap(np.linspace(0, 1, 9).reshape(3, 3))
        image = ax.images[0]
        rgb = image.to_rgba(image.get_array())[..., :3]
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        own = np.where(ink(image) == "white", 1.0, 0.0)
        contrast = (np.maximum(own, luminance) + 0.05) / (np.minimum(own, luminance) + 0.05)
        assert contrast.min() > 4.5  # WCAG 2 AA
        assert {text.get_color() for text in ax.texts} == {"black", "white"}


class TestManyLayers:
    def test_hundreds_of_undefined_layers_are_few_rectangles(self):
        mask = np.zeros((600, 500), dtype=bool)
        mask[::9], mask[:, ::7] = True, True
        mask[5, 5] = True
        found = rectangles(mask)
        assert len(found) == len(range(0, 600, 9)) + len(range(0, 500, 7)) + 1
        covered = np.zeros(mask.shape, dtype=bool)
        for r, c, h, w in found:
            covered[r : r + h, c : c + w] = True
        np.testing.assert_array_equal(covered, mask)

    def test_thousands_of_single_undefined_cells_are_grey(self):
        rng = np.random.default_rng(0)
        values = np.where(rng.random((400, 400)) < 0.3, np.nan, 0.5)
        ax = plot_heatmap(heatmap_matrix(400, values=values))
        assert not ax.collections
        grey = ax.images[1].get_array()
        np.testing.assert_array_equal(grey.mask, np.isfinite(values))
        assert ax.get_xlabel() == "400 layers in order of depth\ngrey: undefined"
