"""The summary of a similarity matrix, as text and as HTML."""

import numpy as np

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
    assert "0.250 to 0.250" in text


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
