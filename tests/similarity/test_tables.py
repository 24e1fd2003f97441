"""Best matches, CSV and LaTeX."""

import csv

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cka_probe.similarity.matrix import SimilarityMatrix


def brute_force_best(matrix, *, smallest=False):
    """Index of the best column of each row by a loop; None where nothing is defined."""
    best = []
    for row in matrix.values:
        chosen = None
        for c, value in enumerate(row):
            if np.isnan(value):
                continue
            if chosen is None or (value < row[chosen] if smallest else value > row[chosen]):
                chosen = c
        best.append(chosen)
    return best


@pytest.mark.parametrize("kind", ["similarity", "distance"])
def test_the_best_column_of_each_row_with_its_interval(kind):
    rng = np.random.default_rng(0)
    values = rng.random((30, 7)) - 0.2
    values[rng.random((30, 7)) < 0.4] = np.nan
    values[4] = np.nan
    errors, p = rng.random((30, 7)), rng.random((30, 7))
    columns = [f"c{i}" for i in range(7)]
    matrix = SimilarityMatrix(
        values,
        [f"r{i}" for i in range(30)],
        columns,
        standard_error=errors,
        p_value=p,
        meta={"kind": kind, "degrees_of_freedom": 5},
    )
    table = matrix.best_match(0.9)
    margin = stats.t.isf(0.05, 5)
    assert list(table["row"]) == list(matrix.rows)
    for r, best in enumerate(brute_force_best(matrix, smallest=kind == "distance")):
        line = table.loc[r]
        if best is None:
            assert pd.isna(line["column"])
            assert line[["value", "standard_error", "low", "high", "p_value"]].isna().all()
            continue
        assert line["column"] == columns[best]
        assert line["value"] == values[r, best]
        assert line["low"] == pytest.approx(values[r, best] - margin * errors[r, best])
        assert line["high"] == pytest.approx(values[r, best] + margin * errors[r, best])
        assert line["p_value"] == p[r, best]
    assert brute_force_best(matrix)[4] is None


def test_a_model_compared_with_itself_matches_its_other_layers():
    values = [[1, 0.2, 0.3], [0.2, 1, 0.1], [0.3, 0.1, 1]]
    matrix = SimilarityMatrix(values, list("abc"), list("abc"))
    assert list(matrix.best_match()["column"]) == ["c", "a", "a"]
    assert list(matrix.best_match(itself=True)["column"]) == ["a", "b", "c"]
    # Two models with the same layer names are not one model.
    assert list(SimilarityMatrix(np.eye(3) * 0.9, list("abc"), list("abc")).best_match()["column"]) == ["a", "b", "c"]


def test_best_matches_of_several_models_name_them(matrix):
    table = matrix.best_match()
    assert list(table.columns[:4]) == ["row_model", "row", "column_model", "column"]
    assert table.loc[0, ["column_model", "column", "value"]].tolist() == ["b", "stem", 0.9]


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (0, 0)])
def test_a_matrix_without_cells_has_no_matches(shape):
    matrix = SimilarityMatrix(np.empty(shape), list("ab")[: shape[0]], list("cd")[: shape[1]])
    assert len(matrix.best_match()) == shape[0]
    assert matrix.best_match()["value"].isna().all()
    assert len(matrix.pairs()) == 0


def test_tables_print_tiny_p_values_and_control_characters_as_text():
    matrix = SimilarityMatrix([[0.9, 0.1]], ["a\x1b[31m"], ["b", "c"], p_value=[[0, 0.03]])
    for table in (matrix.pairs(), matrix.best_match(), matrix.pairs().head(1)):
        for text in (repr(table), table._repr_html_()):
            assert "1e-16" in text
            assert "\x1b" not in text
            assert r"a\x1b[31m" in text
        assert table["p_value"].dtype == np.float64
        assert table["row"].iloc[0] == "a\x1b[31m"


def test_csv_files_hold_the_chosen_table(matrix, tmp_path):
    assert matrix.to_csv(tmp_path / "values.csv") == tmp_path / "values.csv"
    read = pd.read_csv(tmp_path / "values.csv", header=[0, 1], index_col=[0, 1])
    np.testing.assert_array_equal(read.to_numpy(), matrix.values)
    matrix.to_csv(tmp_path / "pairs.csv", "pairs", 0.9)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "pairs.csv"), pd.DataFrame(matrix.pairs(0.9)), check_dtype=False, check_frame_type=False
    )
    matrix.to_csv(tmp_path / "best.csv", "best_match")
    assert len(pd.read_csv(tmp_path / "best.csv")) == 2
    with pytest.raises(ValueError, match="`table` must be one of 'values', 'pairs', 'best_match', got 'x'"):
        matrix.to_csv(tmp_path / "x.csv", "x")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        matrix.to_csv(tmp_path / "nowhere" / "x.csv")


def test_names_in_csv_files_are_neither_formulas_nor_escape_codes(tmp_path):
    names = ["=1+1", "＝1", "@x", "-a", "+b", 'quote",', "\x1b[31m", "two\nlines", "plain"]
    matrix = SimilarityMatrix(np.ones((9, 1)), names, ["=A1"])
    for table, at in (("values", 0), ("pairs", 0), ("best_match", 0)):
        lines = list(csv.reader(matrix.to_csv(tmp_path / "t.csv", table).read_text().splitlines()))
        shown = ["'=1+1", "'＝1", "'@x", "'-a", "'+b", 'quote",', r"\x1b[31m", r"two\nlines", "plain"]
        assert [line[at] for line in lines[1:]] == shown
    assert "'=A1" in matrix.to_csv(tmp_path / "t.csv").read_text()


def test_latex_shows_names_letter_by_letter():
    name = r"a&b%c$d#e_f{g}h~i^j\k<l>" + "\x1b\n"
    escaped = (
        r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k\textless{}l\textgreater{}"
        r"\textbackslash{}x1b\textbackslash{}n"
    )
    matrix = SimilarityMatrix([[0.5, -0.25]], [name], ["x", "y"], notes=["first\n\\input{secrets}"])
    text = matrix.to_latex()
    assert text.splitlines()[0] == r"% note: first\n\input{secrets}"  # all of it is a comment
    assert rf"{escaped} & 0.500 & $-0.250$ \\" in text.splitlines()


def test_latex_of_matches_and_errors():
    matrix = SimilarityMatrix(
        [[0.912, np.nan], [np.nan, np.nan]],
        ["a", "dead"],
        ["b", "c"],
        standard_error=[[0.0123, np.nan], [np.nan, np.nan]],
        p_value=[[0, np.nan], [np.nan, np.nan]],
    )
    assert r"a & 0.91 $\pm$ 0.01 & -- \\" in matrix.to_latex(digits=2, error=True)
    best = matrix.to_latex("best_match").splitlines()
    assert best[2] == r"row & column & value & standard error & low & high & p-value \\"
    assert best[4].startswith("a & b & 0.912 & 0.012 &")
    assert best[4].endswith(r"& $< 10^{-16}$ \\")
    assert best[5] == r"dead & -- & -- & -- & -- & -- & -- \\"
    assert "0.00 " not in SimilarityMatrix([[-0.0001]], ["a"], ["b"]).to_latex(digits=2).replace("& 0.00 ", "")
    with pytest.raises(ValueError, match="needs a matrix with a standard error"):
        SimilarityMatrix([[1]], ["a"], ["b"]).to_latex(error=True)
    with pytest.raises(ValueError, match="`digits` must be an integer of at least 0, got -1"):
        matrix.to_latex(digits=-1)
