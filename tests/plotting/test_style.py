"""Every plotting function draws at the size of print: widths, sizes of all texts, titles, legends, ink."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from pictures import check_picture, heatmap_matrix, share_of_ink

from cka_probe import plotting
from cka_probe.plotting import house_style
from cka_probe.plotting.style import COLUMN, PAGE
from cka_probe.similarity.matrix import SimilarityMatrix

NAMES = {"model_x": "resnet20 (seed 0)", "model_y": "resnet20 (seed 1)", "estimator": "unbiased"}
METHODS = ["labels alone", "KD", "RCKA", "LCKA"]


def full(count, **kwargs):
    extra = {name: np.full((count, count), 0.1) for name in ("standard_error", "chance", "p_value")}
    return heatmap_matrix(count, meta=NAMES, **extra | kwargs)


def history():
    rows = [
        {"method": method, "seed": seed, "epoch": epoch, "test_accuracy": 0.9 - (0.5 + 0.02 * seed + 0.05 * i) / epoch}
        for i, method in enumerate(METHODS)
        for seed in range(3)
        for epoch in range(1, 21)
    ]
    return pd.DataFrame(rows)


def costs():
    cases = ["ResNet-18\n32 x 32", "ResNet-50\n224 x 224", "ViT-tiny\n224 x 224"]
    rows = [
        {"peer": peer, "case": case, "ratio_to_floor": 1.1 + i * j, "peak_mb": 30 + 100 * i + j, "max_error": 0.1 * i}
        for i, peer in enumerate(["cka_probe", "pytorch-cka", "ckatorch", "torch_cka"])
        for j, case in enumerate(cases)
    ]
    return pd.DataFrame(rows)


def corridor():
    c = np.linspace(0.05, 0.99, 40)
    rows = pd.DataFrame({"cka": c, "mmd_squared": 1.3 * (1 - c**2), "rank": 4})
    return pd.concat([rows.assign(source="random features"), rows.assign(source="student after RCKA")])


def slack():
    rows = [
        {"tau_squared": tau, "slack": 1 + factor * tau, "bound": bound}
        for bound, factor in (("T1", 5), ("T4", 2), ("conjecture (not proved)", 0.5))
        for tau in (0.1, 1, 10, 100)
    ]
    return pd.DataFrame(rows)


def along():
    epochs = np.arange(20)
    mmd = 0.1 * np.exp(-epochs / 8)
    return pd.DataFrame({"epoch": epochs, "mmd_squared": mmd, "T1": 9 * mmd, "T4": 3 * mmd, "conjecture": 1.5 * mmd})


def logits(seed):
    return np.random.default_rng(seed).normal(size=(40, 10))


def apart(n):
    points = np.random.default_rng(0).normal(size=(n, 3))
    return np.linalg.norm(points[:, None] - points[None], axis=2)


DRAWINGS = {
    "plot_map": [
        lambda: plotting.plot_map(
            apart(12),
            colour=["digits", "clothes"] * 6,
            marker=[1, 2, 3] * 4,
            paths=[[0, 4, 8]],
            colour_label="data",
            marker_label="epochs",
        ),
        lambda: plotting.plot_map(apart(12), colour=np.arange(12.0), names=[f"resnet{i}" for i in range(12)]),
    ],
    "plot_dendrogram": [lambda: plotting.plot_dendrogram(apart(12), colour=["digits", "clothes"] * 6).figure],
    "plot_heatmap": [
        lambda: plotting.plot_heatmap(full(5), title="before"),
        lambda: plotting.plot_heatmap(full(18), significance=0.05, best_match=True),
        lambda: plotting.plot_heatmap(full(60)),
        lambda: plotting.plot_heatmap(full(200), limits="data"),
        lambda: plotting.plot_heatmap(heatmap_matrix(2, 40, meta=NAMES)),
        lambda: plotting.plot_heatmap(
            full(12, row_models=["resnet20"] * 6 + ["vgg"] * 6, column_models=["resnet20"] * 4 + ["vgg"] * 8)
        ),
    ],
    "plot_heatmap_grid": [
        lambda: plotting.plot_heatmap_grid({f"seed {i} of the student": full(11) for i in range(4)}, columns=4),
        lambda: plotting.plot_heatmap_grid({f"seed {i}": full(20) for i in range(3)}),
    ],
    "plot_before_after": [lambda: plotting.plot_before_after(full(11), full(11, shift=0.2))],
    "plot_difference": [lambda: plotting.plot_difference(full(8), full(8, shift=0.2))],
    "plot_heatmap_with_error": [lambda: plotting.plot_heatmap_with_error(full(8))],
    "plot_training_curves": [lambda: plotting.plot_training_curves(history())],
    "plot_layer_trends": [
        lambda: plotting.plot_layer_trends({i: full(5) for i in range(5)}, xlabel="epoch"),
        lambda: plotting.plot_layer_trends({i: full(20) for i in range(5)}, xlabel="epoch"),
    ],
    "plot_accuracies": [
        lambda: plotting.plot_accuracies(history(), value="test_accuracy", references={"teacher": 0.93}),
        lambda: plotting.plot_accuracies(history(), value="test_accuracy", from_zero=False),
    ],
    "plot_costs": [lambda: plotting.plot_costs(costs())],
    "plot_time_and_memory": [lambda: plotting.plot_time_and_memory(costs())],
    "plot_gram": [lambda: plotting.plot_gram(plotting.centred_gram(logits(0)), labels=np.arange(40) % 10)],
    "plot_gram_pairs": [lambda: plotting.plot_gram_pairs(logits(0), logits(1), labels=np.arange(40) % 10)],
    "plot_corridor": [lambda: plotting.plot_corridor(corridor())],
    "plot_bound_slack": [lambda: plotting.plot_bound_slack(slack())],
    "plot_bounds_along_training": [
        lambda: plotting.plot_bounds_along_training(along(), bounds=["T1", "T4", "conjecture"])
    ],
}


def test_every_plotting_function_is_checked():
    assert set(DRAWINGS) == {name for name in plotting.__all__ if name.startswith("plot_")}


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, all_ in DRAWINGS.items() for i in range(len(all_))])
def test_pictures_can_be_read_at_the_size_of_print(name, number):
    drawn = DRAWINGS[name][number]()
    check_picture(np.ravel(drawn)[0].figure.figure)


@pytest.mark.parametrize(
    "values",
    [
        np.full((6, 6), 0.999),
        np.full((6, 6), 1.0),
        np.full((6, 6), np.nan),
        np.zeros((6, 6)),
        0.97 + 0.03 * np.random.default_rng(0).random((6, 6)),
        np.random.default_rng(0).random((150, 150)) * 1e-3,
    ],
    ids=["0.999", "ones", "undefined", "zeros", "crowded", "tiny"],
)
def test_no_heatmap_is_a_blank_canvas(values):
    ax = plotting.plot_heatmap(values)
    assert share_of_ink(ax.figure) > 0.04


def test_crowded_values_use_the_whole_colour_map():
    values = 0.97 + 0.03 * np.random.default_rng(0).random((6, 6))
    image = plotting.plot_heatmap(values).images[0]
    lightness = image.to_rgba(image.get_array())[..., :3].mean(-1)
    assert lightness.max() - lightness.min() > 0.6


def test_the_style_ends_with_its_block_and_leaves_given_axes_alone():
    before = dict(mpl.rcParams)
    plotting.plot_heatmap(heatmap_matrix(3))
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20.0, "axes.labelsize": 19.0}):
        _, ax = plt.subplots()
        plotting.plot_corridor(corridor(), ax=ax)
        assert ax.xaxis.label.get_size() == 19
    with house_style(font_family="monospace"):
        _, ax = plt.subplots(figsize=(COLUMN, 2))
        assert ax.xaxis.label.get_family() == ["monospace"]
        assert ax.xaxis.label.get_size() == 8
    assert dict(mpl.rcParams) == before
    with pytest.raises(KeyError, match="no setting 'fontfamily'"), house_style(fontfamily="x"):
        pass


def test_ticks_made_after_the_style_keep_its_size():
    ax = plotting.plot_corridor(corridor())
    ax.set_xlim(-3, 9)
    ax.figure.canvas.draw()
    assert {label.get_fontsize() for label in ax.get_xticklabels()} == {7.0}


def test_heatmaps_of_many_layers_fill_the_page_and_small_ones_a_column():
    small = SimilarityMatrix(np.eye(3), list("abc"), list("abc"))
    assert plotting.plot_heatmap(small).figure.get_size_inches()[0] == COLUMN
    assert plotting.plot_heatmap(heatmap_matrix(40)).figure.get_size_inches()[0] == PAGE
