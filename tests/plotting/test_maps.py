"""Maps and trees of models show the given distances."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest

import cka_probe as cp
from cka_probe.plotting.maps import map_positions, plot_dendrogram, plot_map


def between(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - x, axis=-1)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 2)) * [3, 1]


def test_points_of_a_plane_are_found_again(points):
    positions, stress = map_positions(between(points))
    np.testing.assert_allclose(between(positions), between(points), atol=1e-4)
    assert stress < 1e-4
    assert np.ptp(positions[:, 0]) > np.ptp(positions[:, 1])


def test_the_stress_is_that_of_the_distances():
    d = between(np.random.default_rng(1).normal(size=(15, 6)))
    positions, stress = map_positions(d)
    expected = np.sqrt(((between(positions) - d) ** 2).sum() / (d**2).sum())
    assert stress == pytest.approx(expected)
    assert 0.05 < stress < 0.5
    np.testing.assert_array_equal(map_positions(d)[0], positions)


def test_groups_have_colours_and_shapes(points):
    ax = plot_map(
        between(points), colour=["a", "b"] * 6, marker=[1, 2, 3] * 4, colour_label="kind", marker_label="width"
    )
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["kind", "a", "b", "width", "1", "2", "3"]
    drawn = np.concatenate([part.get_offsets() for part in ax.collections])
    assert len(drawn) == 12
    np.testing.assert_allclose(np.sort(between(drawn).ravel()), np.sort(between(points).ravel()), atol=1e-3)
    assert "stress 0.00" in ax.get_xlabel()


def test_many_numbers_have_a_scale(points):
    ax = plot_map(between(points), colour=np.arange(12.0), colour_label="epoch")
    assert ax.get_legend() is None
    assert ax.figure.axes[1].get_ylabel() == "epoch"


def test_a_path_joins_the_models_in_order(points):
    ax = plot_map(between(points), paths=[[0, 3, 5]], names=[f"m_{i}" for i in range(12)])
    line = ax.lines[0].get_xydata()
    positions = map_positions(between(points))[0]
    np.testing.assert_allclose(line, positions[[0, 3, 5]])
    assert sum(text.get_text().startswith("m") for text in ax.texts) == 12


def test_given_axes_are_used(points):
    _, ax = plt.subplots()
    assert plot_map(between(points), ax=ax) is ax


def test_the_tree_joins_what_is_near():
    rng = np.random.default_rng(2)
    x = np.repeat([[0.0], [5.0], [20.0]], 4, axis=0) + rng.normal(size=(12, 1))
    shuffled = rng.permutation(12)
    matrix = cp.SimilarityMatrix(
        between(x[shuffled]), [f"m{i}" for i in shuffled], [f"m{i}" for i in shuffled], meta={"kind": "distance"}
    )
    grid = plot_dendrogram(matrix, colour=[int(i) // 4 for i in shuffled])
    order = [int(shuffled[i]) // 4 for i in grid.dendrogram_row.reordered_ind]
    assert sum(a != b for a, b in pairwise(order)) == 2
    assert [text.get_text() for text in grid.figure.legends[0].get_texts()] == ["0", "1", "2"]


@pytest.mark.parametrize("draw", [plot_map, plot_dendrogram])
@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((3, 4)), r"square matrix of at least 3 models, got the shape \(3, 4\)"),
        (np.zeros((2, 2)), "at least 3 models"),
        (np.full((3, 3), np.nan), r"NaN or infinity \(models \[0, 1, 2\]\)"),
        (np.arange(9.0).reshape(3, 3), "must be symmetric"),
        (cp.SimilarityMatrix(np.eye(3), list("abc"), list("abc")), "holds the similarity 'cka'"),
    ],
)
def test_what_are_no_distances_is_an_error(draw, distances, message):
    with pytest.raises(ValueError, match=message):
        draw(distances)


def test_wrong_arguments_are_errors(points):
    d = between(points)
    with pytest.raises(ValueError, match="There is no method 'tsne'"):
        plot_map(d, method="tsne")
    with pytest.raises(ValueError, match="`colour` has 3 values for 12 models"):
        plot_map(d, colour=[1, 2, 3])
    with pytest.raises(ValueError, match="`colour` has 12 different texts"):
        plot_map(d, colour=list("abcdefghijkl"))
    with pytest.raises(ValueError, match="`marker` has 12 different values"):
        plot_map(d, marker=range(12))
    with pytest.raises(ValueError, match="A path holds places from 0 to 11"):
        plot_map(d, paths=[[0, 12]])
    with pytest.raises(ValueError, match="`colour` has 3 values for 12 models"):
        plot_dendrogram(d, colour=[1, 2, 3])
