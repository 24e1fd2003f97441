"""The heatmap says what the matrix holds: its names, numbers, scale and gaps."""

import subprocess
import sys
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm

from cka_probe.plotting import plot_heatmap
from cka_probe.plotting.cells import ink, rectangles
from cka_probe.plotting.labels import shorten
from cka_probe.similarity.matrix import SimilarityMatrix


def make(rows, columns=None, *, shift=0.0, **kwargs):
    columns = rows if columns is None else columns
    distance = np.linspace(0, 1, rows)[:, None] - np.linspace(0, 1, columns)[None]
    values = np.exp(-((distance / 0.35) ** 2)) - shift
    return SimilarityMatrix(
        kwargs.pop("values", values),
        [f"layer{1 + 4 * i // rows}.{i}.conv1" for i in range(rows)],
        [f"layer{1 + 4 * i // columns}.{i}.conv2" for i in range(columns)],
        **kwargs,
    )


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def drawn_at(figure, ax):
    figure.canvas.draw()
    return ax


def written(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def colour_bar(ax):
    (bar,) = ax.child_axes
    return bar


def cell_texts(ax):
    return {tuple(int(p) for p in text.get_position()): text.get_text() for text in ax.texts}


def assert_names_do_not_overlap(ax):
    renderer = ax.figure.canvas.get_renderer()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [t.get_window_extent(renderer) for t in axis.get_ticklabels() if t.get_text()]
        start, end = ("x0", "x1") if axis is ax.xaxis else ("y0", "y1")
        # The box of a text has a little air around its letters, which may touch.
        for one, other in pairwise(boxes):
            overlap = min(getattr(one, end), getattr(other, end)) - max(getattr(one, start), getattr(other, start))
            assert overlap < 0.2 * (getattr(one, end) - getattr(one, start))


class TestImage:
    def test_values_lie_where_their_names_say(self):
        matrix = make(3, 4, shift=0.2)
        ax = drawn(plot_heatmap(matrix))
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array().data, matrix.values)
        assert image.origin == "lower"  # first layers at the lower left
        assert not ax.yaxis_inverted()
        assert written(ax.yaxis) == ["layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv1"]
        assert written(ax.xaxis) == ["layer1.0.conv2", "layer2.1.conv2", "layer3.2.conv2", "layer4.3.conv2"]
        assert ax.get_xticks()[0] == 0

    def test_given_axes_title_and_keywords_for_matplotlib(self):
        _, ax = plt.subplots()
        result = plot_heatmap(make(4), ax=ax, title="after", cmap="cividis", alpha=0.5, aspect="auto")
        assert result is ax
        assert ax.get_title() == "after"
        assert ax.images[0].get_cmap().name == "cividis"
        assert ax.images[0].get_alpha() == 0.5
        assert ax.get_aspect() == "auto"
        with pytest.raises(AttributeError, match="nonsense"):
            plot_heatmap(make(4), nonsense=1)

    def test_method_of_the_matrix(self):
        _, ax = plt.subplots()
        assert make(3).plot(ax, title="t") is ax
        assert make(3).plot().images

    def test_frame_and_array(self):
        frame = pd.DataFrame([[0.1, 0.2]], index=["a"], columns=["b", "c"])
        ax = drawn(plot_heatmap(frame))
        assert (written(ax.yaxis), written(ax.xaxis)) == (["a"], ["b", "c"])
        ax = drawn(plot_heatmap(np.eye(3)))
        assert written(ax.xaxis) == ["0", "1", "2"]
        assert colour_bar(ax).get_ylabel() == "similarity"

    def test_multiindex_frame_names_the_models(self):
        frame = make(2, row_models=["r", "s"], column_models=["v", "v"]).to_frame()
        ax = plot_heatmap(frame)
        assert ax.get_xlabel() == "v"

    def test_colormap_prints_in_grey(self):
        colours = mpl.colormaps[plot_heatmap(make(2)).images[0].get_cmap().name](np.linspace(0, 1, 64))[:, :3]
        assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > 0).all()

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"matrix": np.empty((0, 3))}, r"There is nothing to draw: the matrix has shape \(0, 3\)"),
            ({"matrix": np.ones(3)}, r"`matrix` must have shape \(rows, columns\), got \(3,\)"),
            ({"annotate": "yes"}, "`annotate` must be one of True, False, 'auto', 'error', got 'yes'"),
            ({"layer_labels": 3}, "`layer_labels` must be one of True, False, 'auto', got 3"),
            ({"annotate": "error"}, "needs a matrix with a standard error"),
            ({"significance": 0.05}, "`significance` needs a matrix with p-values"),
            ({"norm": LogNorm(0.1, 1), "vmin": 0.2}, "Give either `norm` or `vmin` and `vmax`"),
            (
                {"matrix": make(2, p_value=np.ones((2, 2))), "significance": 5},
                "`significance` must lie strictly between",
            ),
        ],
    )
    def test_refuses(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            plot_heatmap(kwargs.pop("matrix", make(2)), **kwargs)
        assert not plt.get_fignums()  # a mistake leaves no empty figure


class TestScale:
    def test_spans_zero_to_one_and_says_so(self):
        ax = drawn(plot_heatmap(make(4, shift=-0.0, values=np.full((4, 4), 0.4), meta={"estimator": "unbiased"})))
        assert ax.images[0].get_clim() == (0, 1)
        bar = colour_bar(ax)
        assert written(bar.yaxis)[0] == "0"
        assert written(bar.yaxis)[-1] == "1"
        assert bar.get_ylabel() == "CKA (unbiased)"

    def test_grows_to_values_outside_instead_of_clipping_them(self):
        ax = drawn(plot_heatmap(make(4, values=np.array([[-0.03, 0, 0, 1.2]] * 4))))
        assert ax.images[0].get_clim() == (-0.03, 1.2)
        assert written(colour_bar(ax).yaxis)[0] == "−0.03"
        assert written(colour_bar(ax).yaxis)[-1] == "1.2"

    def test_asked_clipping_shows_as_arrows(self):
        extends = []
        for vmin, vmax in ((None, None), (0.2, None), (None, 0.8), (0.2, 0.8)):
            ax = plot_heatmap(make(4), vmin=vmin, vmax=vmax)
            extends.append(ax.images[0].colorbar.extend)
        assert extends == ["neither", "min", "max", "both"]
        assert ax.images[0].get_clim() == (0.2, 0.8)

    def test_a_norm_keeps_its_ends_and_ticks(self):
        ax = drawn(
            plot_heatmap(make(3, values=np.full((3, 3), 0.5), chance=np.full((3, 3), 0.1)), norm=LogNorm(0.01, 1))
        )
        assert ax.images[0].get_clim() == (0.01, 1)
        (chance,) = (text for text in colour_bar(ax).texts if text.get_text() == "chance")
        assert chance.xy == (0, pytest.approx(0.5))  # 0.1 is half way from 0.01 to 1

    def test_can_be_left_out(self):
        assert plot_heatmap(make(4), colorbar=False).child_axes == []

    def test_is_as_tall_as_the_cells_are_drawn(self):
        _, ax = plt.subplots(figsize=(9, 3))
        drawn(plot_heatmap(make(5), ax=ax))
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
        ax = plot_heatmap(make(3, chance=np.full((3, 3), 0.3)))
        heights = {float(line.get_ydata()[0]) for line in colour_bar(ax).lines}
        assert heights == {0.3}
        assert "chance" in [text.get_text() for text in colour_bar(ax).texts]

    def test_chance_level_that_varies_is_a_range(self):
        chance = np.full((3, 3), 0.2)
        chance[0, 0], chance[1, 1] = 0.5, np.nan
        ax = plot_heatmap(make(3, chance=chance))
        assert {float(line.get_ydata()[0]) for line in colour_bar(ax).lines} == {0.2, 0.5}

    def test_no_mark_without_chance(self):
        ax = plot_heatmap(make(3))
        assert len(colour_bar(ax).lines) == 0
        assert "chance" not in [text.get_text() for text in colour_bar(ax).texts]


class TestUndefined:
    def test_hatched_not_coloured(self):
        values = np.full((4, 5), 0.5)
        values[2], values[:, 1] = np.nan, np.nan
        ax = plot_heatmap(make(4, 5, values=values))
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
        ax = drawn(plot_heatmap(make(3, values=np.full((3, 3), np.nan))))
        assert ax.images[0].get_clim() == (0, 1)
        assert len(ax.collections) == 1
        assert not ax.texts

    def test_infinite_is_undefined_too(self):
        ax = plot_heatmap(np.array([[np.inf, 0.5]]))
        assert ax.images[0].get_clim() == (0, 1)
        assert len(ax.collections[0].get_paths()) == 1

    def test_nothing_hatched_when_all_is_defined(self):
        assert len(plot_heatmap(make(3)).collections) == 0

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
        matrix = make(5)
        ax = plot_heatmap(matrix)
        texts = cell_texts(ax)
        assert len(texts) == 25
        assert texts[3, 1] == f"{matrix.values[1, 3]:.2f}"  # (column, row)

    def test_left_out_where_they_do_not(self):
        assert not plot_heatmap(make(60)).texts
        assert len(plot_heatmap(make(30), annotate=True).texts) == 900
        assert not plot_heatmap(make(3), annotate=False).texts

    def test_stay_inside_their_cells(self):
        ax = drawn(plot_heatmap(make(18, shift=0.05)))
        renderer = ax.figure.canvas.get_renderer()
        cell = ax.get_window_extent().width / 18
        assert len(ax.texts) == 324
        assert max(text.get_window_extent(renderer).width for text in ax.texts) < cell

    def test_signs(self):
        ax = plot_heatmap(np.array([[-0.05, -0.001, 0.001]]))
        assert list(cell_texts(ax).values()) == ["−0.05", "0.00", "0.00"]

    def test_undefined_cells_have_none(self):
        assert set(cell_texts(plot_heatmap(np.array([[np.nan, 0.25]])))) == {(1, 0)}

    def test_with_standard_error(self):
        ax = plot_heatmap(
            make(2, values=np.full((2, 2), 0.5), standard_error=[[0.013, np.nan], [0, 0.1]]), annotate="error"
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


class TestNames:
    @pytest.mark.parametrize("count", [5, 18, 52, 100])
    def test_readable_from_five_to_a_hundred_layers(self, count):
        ax = drawn(plot_heatmap(make(count)))
        assert_names_do_not_overlap(ax)
        for axis in (ax.xaxis, ax.yaxis):
            assert min(label.get_fontsize() for label in axis.get_ticklabels()) >= 6
        names = written(ax.yaxis)
        assert names[0] == "layer1.0.conv1"
        assert len(names) == count if count <= 52 else 30 <= len(names) < count

    def test_thin_out_when_the_room_shrinks_later(self):
        ax = drawn(plot_heatmap(make(52)))
        before = len(written(ax.yaxis))
        ax.figure.set_size_inches(4, 4)
        drawn(ax)
        assert len(written(ax.yaxis)) < before
        assert_names_do_not_overlap(ax)

    def test_each_name_stands_at_its_layer_after_thinning(self):
        ax = drawn(plot_heatmap(make(100)))
        for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True):
            assert f".{int(tick)}." in label.get_text()

    def test_shared_path_moves_to_the_axis(self):
        names = ["backbone.body.conv1", "backbone.body.layer1.0"]
        ax = drawn(
            plot_heatmap(SimilarityMatrix(np.eye(2), names, names, meta={"model_x": "teacher", "model_y": "student"}))
        )
        assert written(ax.xaxis) == ["conv1", "layer1.0"]
        assert ax.get_xlabel() == "student: backbone.body.*"
        assert ax.get_ylabel() == "teacher: backbone.body.*"

    def test_all_or_none(self):
        names = [f"backbone.body.{i}" for i in range(80)]
        matrix = SimilarityMatrix(np.eye(80), names, names)
        assert written(drawn(plot_heatmap(matrix, layer_labels=True)).xaxis) == names
        assert written(drawn(plot_heatmap(matrix, layer_labels=False)).xaxis) == []

    def test_short_names_lie_flat(self):
        flat = drawn(plot_heatmap(np.eye(4)))
        assert flat.get_xticklabels()[0].get_rotation() == 0
        assert drawn(plot_heatmap(make(4))).get_xticklabels()[0].get_rotation() == 90

    @pytest.mark.parametrize(
        ("labels", "short", "prefix"),
        [
            (["a.b.c", "a.b.d"], ["c", "d"], "a.b"),
            (["a.b", "a.b.c"], ["b", "b.c"], "a"),
            (["conv1", "layer1.0"], ["conv1", "layer1.0"], ""),
            (["layer1.0", "layer10.0"], ["layer1.0", "layer10.0"], ""),  # parts of the path, not letters
            (["a.b.c"], ["a.b.c"], ""),
            (["a.b", "a.b"], ["b", "b"], "a"),
            ([], [], ""),
        ],
    )
    def test_shorten(self, labels, short, prefix):
        assert shorten(labels) == (short, prefix)

    def test_very_long_names_keep_both_ends(self):
        (name, _), _ = shorten(["encoder.block.3.attention.self.query.lora_A.default", "head"])
        assert len(name) == 30
        assert name.startswith("encoder.")
        assert name.endswith("query.lora_A.default"[-19:])
        assert "…" in name


class TestModels:
    def test_lines_and_names_between_models(self):
        models = ["resnet20"] * 3 + ["vgg8"] * 2
        ax = drawn(plot_heatmap(make(5, row_models=models, column_models=models)))
        assert {float(line.get_xdata()[0]) for line in ax.lines if len(set(line.get_xdata())) == 1} == {2.5}
        names = [written(axis) for child in ax.child_axes for axis in (child.xaxis, child.yaxis)]
        assert names.count(["resnet20", "vgg8"]) == 2
        assert ax.get_xlabel() == ""

    def test_one_model_is_named_on_the_axis(self):
        ax = plot_heatmap(make(2, row_models=["a", "a"], column_models=["b", "b"]))
        assert (ax.get_ylabel(), ax.get_xlabel()) == ("a", "b")
        assert not ax.lines


class TestSignificance:
    def test_crosses_on_cells_that_do_not_differ_from_chance(self):
        # Benjamini-Hochberg by hand: of 1e-6, 0.03, 0.04, 0.9 at rate 0.05 the limits are 0.0125, 0.025, 0.0375, 0.05.
        matrix = make(2, p_value=[[1e-6, 0.03], [0.9, 0.04]])
        ax = plot_heatmap(matrix, significance=0.05, annotate=False)
        marks = {tuple(p) for p in ax.collections[0].get_offsets().data}
        assert marks == {(1, 0), (0, 1), (1, 1)}
        assert "× not significant (false discovery rate 0.05)" in ax.get_xlabel()

    def test_beside_the_numbers(self):
        ax = plot_heatmap(make(2, p_value=np.ones((2, 2))), significance=0.05)
        offsets = ax.collections[0].get_offsets().data
        assert ((offsets % 1) > 0.3).all()

    def test_undefined_cells_take_no_part(self):
        values = np.array([[0.9, np.nan]])
        ax = plot_heatmap(SimilarityMatrix(values, ["a"], ["b", "c"], p_value=[[0.04, np.nan]]), significance=0.05)
        assert len(ax.collections) == 1  # the hatch; 0.04 alone is significant
        assert "significant" not in ax.get_xlabel()


def test_plots_import_no_torch():
    code = "import sys; from cka_probe.plotting import plot_heatmap; plot_heatmap; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
