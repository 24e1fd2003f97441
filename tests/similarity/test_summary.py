"""The summary of a similarity matrix, as text and as HTML."""

import base64

import numpy as np
import pytest

from cka_probe.similarity.matrix import SimilarityMatrix


def test_repr_holds_the_main_facts(matrix):
    text = repr(matrix)
    assert "SimilarityMatrix: cka, 2 x 3 layers" in text
    assert "-0.020 to 0.900, median 0.450; 2 of 6 undefined" in text
    assert "a: conv1" in text
    assert "most like b: stem (0.900)" in text
    assert "kernel Linear(), samples 512" in text
    assert "dead: constant output" in text
    assert "up to 0.1" in text
    assert "chance level    0.250\n" in text


def test_a_model_compared_with_itself_gets_matches_off_the_diagonal():
    matrix = SimilarityMatrix([[1, 0.2, np.nan], [0.2, 1, np.nan], [np.nan] * 3], list("abc"), list("abc"))
    text = repr(matrix)
    assert "most like b of the others (0.200)" in text
    assert "most like a of the others (0.200)" in text


def test_the_summary_of_a_long_matrix_is_short():
    names = [f"layer{i}" for i in range(100)]
    lines = repr(SimilarityMatrix(np.random.default_rng(0).random((100, 100)), names, names)).splitlines()
    assert len(lines) < 12
    assert any("94 more rows" in line for line in lines)


def test_matrices_without_defined_values():
    assert "all undefined" in repr(SimilarityMatrix([[np.nan]], ["a"], ["b"]))
    assert "0 x 0 layers" in repr(SimilarityMatrix(np.empty((0, 0)), [], []))


def test_html_escapes_names():
    matrix = SimilarityMatrix([[1.0, np.nan]], ["<script>x</script>"], ["a&b", "c"], notes=["<b>dead</b>"])
    text = matrix._repr_html_()
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "undefined" in text
    assert "1.000" in text


@pytest.mark.parametrize("shape", [(2, 3), (40, 7), (1, 1), (0, 0)])
def test_a_notebook_shows_the_heatmap_above_the_summary(shape):
    values = np.random.default_rng(0).uniform(size=shape)
    matrix = SimilarityMatrix(values, [f"row{i}" for i in range(shape[0])], [f"col{i}" for i in range(shape[1])])
    text = matrix._repr_html_()
    if not all(shape):
        assert "<img" not in text
        return
    _, _, rest = text.partition("base64,")
    picture = base64.b64decode(rest.partition("'")[0]).decode()
    assert "<svg" in picture
    assert "<image" in picture or picture.count("<path") > 10  # the cells
    assert text.index("<img") < text.index("<table")
    assert len(picture) < 200_000


def test_control_characters_of_names_and_notes_do_not_reach_the_terminal():
    matrix = SimilarityMatrix(
        [[0.5]], ["a\x1b[31m"], ["b\nc"], notes=["\x1b]0;title\x07"], meta={"model_x": "\x1bx", "model_y": "y\r"}
    )
    for text in (repr(matrix), matrix._repr_html_()):
        assert "\x1b" not in text
        assert "\r" not in text
        assert r"\x1b]0;title\x07" in text


def test_a_notebook_does_not_read_names_as_mathematics():
    assert "tex2jax_ignore" in SimilarityMatrix([[0.5]], ["a$b$c"], ["d"])._repr_html_()


def test_notes_are_wrapped_and_counted():
    long = "The layer is constant. " * 30
    notes = [long.strip(), *(f"note {i}" for i in range(50))]
    matrix = SimilarityMatrix([[0.5]], ["a"], ["b"], notes=notes)
    lines = repr(matrix).splitlines()
    assert max(map(len, lines)) <= 120
    shown = [line for line in lines if line.lstrip().startswith("note")]
    assert len(lines) < 20
    assert shown[-1].endswith(f"... and {51 - (len(shown) - 1)} more notes; see result.notes")
    assert " ".join(" ".join(lines).split()).count("The layer is constant.") == 30
    assert "... and 11 more notes; see result.notes" in matrix._repr_html_()


def test_a_few_notes_are_all_shown():
    for count in range(1, 13):
        text = repr(SimilarityMatrix([[0.5]], ["a"], ["b"], notes=[f"fact {i}." for i in range(count)]))
        assert all(f"fact {i}." in text for i in range(count))
        assert "result.notes" not in text


def test_one_endless_note_ends():
    text = repr(SimilarityMatrix([[0.5]], ["a"], ["b"], notes=["word " * 5000, "second"]))
    assert len(text.splitlines()) < 20
    assert "this note goes on, and there are 1 more; see result.notes" in text


def test_names_of_any_length_keep_the_summary_narrow():
    text = repr(SimilarityMatrix([[0.5]], ["x" * 5000 + "end"], ["y" * 5000]))
    assert max(map(len, text.splitlines())) < 150
    assert "xend" in text
