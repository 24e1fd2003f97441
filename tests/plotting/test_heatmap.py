"""The heatmap shows the matrix: values at the right cells, models, significance; wrong arguments are refused."""

import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm
from pictures import colour_bar, drawn, heatmap_matrix, written

from cka_probe.plotting import plot_heatmap
from cka_probe.similarity.matrix import SimilarityMatrix


class TestImage:
    def test_values_lie_where_their_names_say(self):
        matrix = heatmap_matrix(3, 4, shift=0.2)
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
        result = plot_heatmap(heatmap_matrix(4), ax=ax, title="after", cmap="cividis", alpha=0.5, aspect="auto")
        assert result is ax
        assert ax.get_title() == "after"
        assert ax.images[0].get_cmap().name == "cividis"
        assert ax.images[0].get_alpha() == 0.5
        assert ax.get_aspect() == "auto"
        with pytest.raises(AttributeError, match="nonsense"):
            plot_heatmap(heatmap_matrix(4), nonsense=1)

    def test_method_of_the_matrix(self):
        _, ax = plt.subplots()
        assert heatmap_matrix(3).plot(ax, title="t") is ax
        assert heatmap_matrix(3).plot().images

    def test_frame_and_array(self):
        frame = pd.DataFrame([[0.1, 0.2]], index=["a"], columns=["b", "c"])
        ax = drawn(plot_heatmap(frame))
        assert (written(ax.yaxis), written(ax.xaxis)) == (["a"], ["b", "c"])
        ax = drawn(plot_heatmap(np.eye(3)))
        assert written(ax.xaxis) == ["0", "1", "2"]
        assert colour_bar(ax).get_ylabel() == "similarity"

    def test_multiindex_frame_names_the_models(self):
        frame = heatmap_matrix(2, row_models=["r", "s"], column_models=["v", "v"]).to_frame()
        ax = plot_heatmap(frame)
        assert ax.get_xlabel() == "v"

    def test_colormap_prints_in_grey(self):
        colours = mpl.colormaps[plot_heatmap(heatmap_matrix(2)).images[0].get_cmap().name](np.linspace(0, 1, 64))[:, :3]
        assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > 0).all()

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"matrix": np.empty((0, 3))}, r"There is nothing to draw: the matrix has shape \(0, 3\)"),
            ({"matrix": np.ones(3)}, r"`matrix` must have shape \(rows, columns\), got \(3,\)"),
            ({"annotate": "yes"}, "`annotate` must be one of True, False, 'auto', 'error', got 'yes'"),
            ({"layer_labels": 3}, "`layer_labels` must be one of True, False, 'auto', 'depth', got 3"),
            ({"annotate": "error"}, "needs a matrix with a standard error"),
            ({"significance": 0.05}, "`significance` needs a matrix with p-values"),
            ({"norm": LogNorm(0.1, 1), "vmin": 0.2}, "Give either `norm` or `limits`, `vmin` and `vmax`"),
            (
                {"matrix": heatmap_matrix(2, p_value=np.ones((2, 2))), "significance": 5},
                "`significance` must lie strictly between",
            ),
        ],
    )
    def test_refuses(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            plot_heatmap(kwargs.pop("matrix", heatmap_matrix(2)), **kwargs)
        assert not plt.get_fignums()  # a wrong argument leaves no empty figure


class TestModels:
    def test_lines_and_names_between_models(self):
        models = ["resnet20"] * 3 + ["vgg8"] * 2
        ax = drawn(plot_heatmap(heatmap_matrix(5, row_models=models, column_models=models)))
        assert {float(line.get_xdata()[0]) for line in ax.lines if len(set(line.get_xdata())) == 1} == {2.5}
        names = [written(axis) for child in ax.child_axes for axis in (child.xaxis, child.yaxis)]
        assert names.count(["resnet20", "vgg8"]) == 2
        assert ax.get_xlabel() == ""

    def test_one_model_is_named_on_the_axis(self):
        ax = plot_heatmap(heatmap_matrix(2, row_models=["a", "a"], column_models=["b", "b"]))
        assert (ax.get_ylabel(), ax.get_xlabel()) == ("a", "b")
        assert not ax.lines


class TestSignificance:
    def test_crosses_on_cells_that_do_not_differ_from_chance(self):
        # Benjamini-Hochberg by hand: of 1e-6, 0.03, 0.04, 0.9 at rate 0.05 the limits are 0.0125, 0.025, 0.0375, 0.05.
        matrix = heatmap_matrix(2, p_value=[[1e-6, 0.03], [0.9, 0.04]])
        ax = plot_heatmap(matrix, significance=0.05, annotate=False)
        marks = {tuple(p) for p in ax.collections[0].get_offsets().data}
        assert marks == {(1, 0), (0, 1), (1, 1)}
        assert "× not significant (false discovery rate 0.05)" in ax.get_xlabel()

    def test_beside_the_numbers(self):
        ax = plot_heatmap(heatmap_matrix(2, p_value=np.ones((2, 2))), significance=0.05)
        offsets = ax.collections[0].get_offsets().data
        assert ((offsets % 1) > 0.3).all()

    def test_undefined_cells_take_no_part(self):
        values = np.array([[0.9, np.nan]])
        ax = plot_heatmap(SimilarityMatrix(values, ["a"], ["b", "c"], p_value=[[0.04, np.nan]]), significance=0.05)
        assert len(ax.collections) == 1  # only the hatch: a single p-value of 0.04 is significant
        assert "significant" not in ax.get_xlabel()


def test_plots_import_no_torch():
    code = "import sys; from cka_probe.plotting import plot_heatmap; plot_heatmap; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(5, 5), (11, 11), (11, 5), (4, 12), (60, 60)])
def test_a_new_figure_has_no_empty_edge_and_a_given_one_keeps_its_size(shape):
    figure = plot_heatmap(heatmap_matrix(*shape)).figure
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert height - box.height < 0.35
    assert width in (pytest.approx(3.25), pytest.approx(6.75))
    given, ax = plt.subplots(figsize=(4, 4), layout="constrained")
    plot_heatmap(heatmap_matrix(*shape), ax=ax)
    assert tuple(given.get_size_inches()) == (4, 4)
