"""Names in pictures are written as they are, in every plotting function."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from pictures import drawn, written

from cka_probe import plotting
from cka_probe.plotting.text import legend_name, plain, squeezed
from cka_probe.similarity.matrix import SimilarityMatrix

# Between two "$" matplotlib reads mathematics; most of these are not valid, the last would lose its dollar signs.
ODD = [
    r"a$\frac$b",
    "$x_{$",
    r"\$x\$",
    "a^b_c\\d{",
    "",
    "x" * 4000,
    "größe β",
    "two\nlines\x1b[31m",
    "$$",
    "%s",
    "<b>&#",
    "_hidden",
    "a$b$c",
]
COUNT = len(ODD)


def odd_matrix(**kwargs):
    values = np.linspace(0, 0.9, COUNT * COUNT).reshape(COUNT, COUNT)
    return SimilarityMatrix(values, ODD, ODD, standard_error=values / 9, p_value=values, **kwargs)


def one_cell():
    return SimilarityMatrix([[0.5]], [r"$\frac$"], [r"$\frac$"], standard_error=[[0.1]])


def rows(**columns):
    lines = [{"seed": seed, "epoch": epoch} for seed in (0, 1) for epoch in (1, 2)]
    return pd.DataFrame([line | {key: name for key in columns} | {"score": 0.5} for name in ODD[:8] for line in lines])


PICTURES = {
    "models": lambda: odd_matrix(meta={"model_x": r"$\frac$", "model_y": "$x_{$"}, measure=r"$\cka$").plot(),
    "full names": lambda: odd_matrix().plot(layer_labels=True),
    "numbers and crosses": lambda: odd_matrix().plot(annotate="error", significance=0.05),
    "several models": lambda: odd_matrix(row_models=["$a$"] * 6 + [r"$\q"] * 7, column_models=ODD).plot(),
    "title": lambda: odd_matrix().plot(title=r"$\frac$ of"),
    "shared path": lambda: SimilarityMatrix(np.eye(2), [r"$\f$.b.c", r"$\f$.b.d"], ["a", "b"]).plot(),
    "frame": lambda: plotting.plot_heatmap(pd.DataFrame([[0.5]], index=[r"$\f$"], columns=["$x_{$"])),
    "grid": lambda: plotting.plot_heatmap_grid({name: one_cell() for name in ODD})[0],
    "before and after": lambda: plotting.plot_before_after(one_cell(), one_cell(), titles=(r"$\frac$", "b"))[0],
    "difference": lambda: plotting.plot_difference(one_cell(), one_cell()),
    "with error": lambda: plotting.plot_heatmap_with_error(one_cell())[0],
    "trends": lambda: plotting.plot_layer_trends({name: odd_matrix() for name in ODD[:4]}, xlabel=r"$\frac$"),
    "few trends": lambda: plotting.plot_layer_trends({0: one_cell(), 1: one_cell()}),
    "curves": lambda: plotting.plot_training_curves(rows(method=1), metric="score"),
    "accuracies": lambda: plotting.plot_accuracies(rows(method=1), value="score", references={r"$\frac$": 0.5}),
    "gram": lambda: plotting.plot_gram(np.eye(8), labels=ODD[:8]),
    "gram pairs": lambda: plotting.plot_gram_pairs(np.eye(6), np.eye(6), class_names=ODD[:6], labels=ODD[:6])[0, 0],
    "corridor": lambda: plotting.plot_corridor(rows(source=1).assign(cka=0.5, mmd_squared=0.7)),
    "slack": lambda: plotting.plot_bound_slack(
        rows(bound=1).assign(tau=0.5, slack=1.5), x="tau", slack="slack", by="bound"
    ),
    "costs": lambda: plotting.plot_costs(
        rows(case=1).query("seed == 0 and epoch == 1").assign(peer=r"$\frac$"), value="score"
    ),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_names_that_look_like_mathematics_are_drawn(name, kind):
    ax = PICTURES[name]()
    ax.figure.savefig(io.BytesIO(), format=kind)


def picture_text(ax):
    """The text of the picture as a vector file holds it, where letters stay letters."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        file = io.StringIO()
        ax.figure.savefig(file, format="svg")
    return file.getvalue()


def test_a_pair_of_dollar_signs_stays_in_the_picture():
    matrix = SimilarityMatrix([[0.5]], ["row$b$c"], ["column$b$c"], meta={"model_x": "x$y$z"}, measure="m$n$o")
    text = picture_text(matrix.plot())
    for name in ("row$b$c", "column$b$c", "x$y$z", "m$n$o"):
        assert f">{name}<" in text
    assert ">t$b$c<" in picture_text(plotting.plot_heatmap_grid({"t$b$c": matrix})[0])
    trends = picture_text(plotting.plot_layer_trends({0: matrix, 1: matrix}))
    assert ">row$b$c × column$b$c<" in trends


def test_a_title_may_hold_mathematics():
    text = picture_text(plotting.plot_heatmap([[0.5]], title=r"$\alpha$ of"))
    assert "α" in text
    assert plotting.plot_heatmap([[0.5]], title="5 $ and 6 $").get_title() == "5 $ and 6 $"


def test_control_characters_are_escapes_and_underscores_do_not_hide_names():
    ax = drawn(SimilarityMatrix([[0.5]], ["a\x1b[31m\n"], ["b"]).plot())
    assert written(ax.yaxis) == [r"a\x1b[31m\n"]
    ax = plotting.plot_layer_trends({0: SimilarityMatrix([[0.5]], ["_fc"], ["_fc"])})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [" _fc"]


def test_lengths():
    assert squeezed("x" * 30, 30) == "x" * 30
    assert len(squeezed("x" * 31, 30)) == 30
    assert legend_name(3.5) == "3.5"
    assert len(legend_name("y" * 500)) == 30


def test_names_with_latex_as_the_renderer_are_escaped():
    with mpl.rc_context({"text.usetex": True}):
        assert plain("a_b$#") == r"a\_b\$\#"
