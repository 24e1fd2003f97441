"""Layer names do not overlap, stand at their layers and are shortened."""

from itertools import pairwise

import numpy as np
import pytest
from pictures import drawn, heatmap_matrix, written

from cka_probe.plotting import plot_heatmap
from cka_probe.plotting.labels import shorten
from cka_probe.similarity.matrix import SimilarityMatrix


def assert_names_do_not_overlap(ax):
    renderer = ax.figure.canvas.get_renderer()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [t.get_window_extent(renderer) for t in axis.get_ticklabels() if t.get_text()]
        start, end = ("x0", "x1") if axis is ax.xaxis else ("y0", "y1")
        # The box of a text is a little larger than its letters, so boxes may overlap slightly.
        for one, other in pairwise(boxes):
            overlap = min(getattr(one, end), getattr(other, end)) - max(getattr(one, start), getattr(other, start))
            assert overlap < 0.2 * (getattr(one, end) - getattr(one, start))


class TestNames:
    @pytest.mark.parametrize("count", [5, 18, 52, 100])
    def test_readable_from_five_to_a_hundred_layers(self, count):
        ax = drawn(plot_heatmap(heatmap_matrix(count)))
        assert_names_do_not_overlap(ax)
        for axis in (ax.xaxis, ax.yaxis):
            assert min(label.get_fontsize() for label in axis.get_ticklabels()) >= 6.5
        names = written(ax.yaxis)
        assert names[0] == "layer1.0.conv1"
        assert len(names) == count if count <= 18 else 6 <= len(names) <= 52

    def test_thin_out_when_the_room_shrinks_later(self):
        ax = drawn(plot_heatmap(heatmap_matrix(52)))
        before = len(written(ax.yaxis))
        ax.figure.set_size_inches(4, 4)
        drawn(ax)
        assert len(written(ax.yaxis)) < before
        assert_names_do_not_overlap(ax)

    def test_each_name_stands_at_its_layer_after_thinning(self):
        ax = drawn(plot_heatmap(heatmap_matrix(100)))
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
        assert drawn(plot_heatmap(heatmap_matrix(10))).get_xticklabels()[0].get_rotation() == 90

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
