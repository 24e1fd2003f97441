"""SimilarityMatrix: its fields, error messages, tables and confidence intervals."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cka_probe.similarity.matrix import SimilarityMatrix


class TestConstruction:
    def test_arrays_are_float64_read_only_copies(self):
        given = np.ones((1, 2), dtype=np.float32)
        matrix = SimilarityMatrix(given, ["a"], ["b", "c"])
        given[0, 0] = 5
        assert matrix.values.dtype == np.float64
        assert matrix.values[0, 0] == 1
        with pytest.raises(ValueError, match="read-only"):
            matrix.values[0, 0] = 2
        with pytest.raises(AttributeError):
            matrix.measure = "other"

    def test_defaults(self):
        matrix = SimilarityMatrix([[1]], ["a"], ["b"])
        assert (matrix.standard_error, matrix.p_value, matrix.chance) == (None, None, None)
        assert (matrix.notes, matrix.meta, matrix.measure, matrix.shape) == ((), {}, "cka", (1, 1))

    def test_meta_is_stored_as_json(self, matrix):
        assert matrix.meta["samples"] == 512
        assert matrix.meta["taps"] == [1, 2]
        assert json.loads(json.dumps(matrix.meta)) == matrix.meta

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"values": [1.0, 2.0]}, ValueError, r"`values` must have shape \(rows, columns\), got \(2,\)"),
            ({"values": [["a"]]}, TypeError, "`values` must hold real numbers, got dtype <U1"),
            ({"values": [[1j]]}, TypeError, "`values` must hold real numbers, got dtype complex128"),
            ({"rows": ["a", "b"]}, ValueError, "`values` has 1 rows, so `rows` must hold 1 names; got 2"),
            ({"columns": []}, ValueError, "`values` has 1 columns, so `columns` must hold 1 names; got 0"),
            (
                {"rows": "a"},
                TypeError,
                r"`rows` must be a sequence of strings, got the single string 'a'. Write \['a'\]",
            ),
            ({"rows": [3]}, TypeError, "`rows` must hold strings, got 3 of type int"),
            ({"notes": "dead"}, TypeError, "`notes` must be a sequence of strings"),
            ({"standard_error": [[1, 2]]}, ValueError, r"`standard_error` must have the shape of `values`, \(1, 1\)"),
            ({"standard_error": [[-1]]}, ValueError, "`standard_error` must not be negative"),
            ({"p_value": [[1.5]]}, ValueError, "`p_value` must lie between 0 and 1"),
            ({"chance": [1.0]}, ValueError, "`chance` must have shape"),
            ({"measure": None}, TypeError, "`measure` must be a string"),
            ({"meta": [1]}, TypeError, "`meta` must be a dict, got list"),
            ({"meta": {"model": object}}, TypeError, r"`meta\['model'\]` cannot be saved as JSON"),
            ({"row_models": ["a", "b"]}, ValueError, "`values` has 1 rows, so `row_models` must hold 1 names; got 2"),
            ({"column_models": []}, ValueError, "`column_models` must hold 1 names; got 0"),
        ],
    )
    def test_errors(self, change, error, match):
        arguments = {"values": [[1.0]], "rows": ["a"], "columns": ["b"]} | change
        with pytest.raises(error, match=match):
            SimilarityMatrix(**arguments)


class TestFrames:
    def test_multiindex_of_models(self, matrix):
        frame = matrix.to_frame()
        assert list(frame.index) == [("a", "conv1"), ("a", "fc")]
        assert frame.columns.names == ["model", "layer"]
        assert frame.loc[("a", "fc"), ("b", "mid")] == 0.6
        frame.iloc[0, 0] = 7  # a copy
        assert matrix.values[0, 0] == 0.9

    def test_plain_index_without_models(self):
        frame = SimilarityMatrix([[1, 0.5]], ["a"], ["b", "c"]).to_frame()
        pd.testing.assert_frame_equal(frame, pd.DataFrame([[1.0, 0.5]], index=["a"], columns=["b", "c"]))

    def test_pairs_are_sorted_and_hold_every_array(self, matrix):
        pairs = matrix.pairs()
        assert list(pairs["value"][:4]) == [0.9, 0.6, 0.3, -0.02]
        assert pairs["value"][4:].isna().all()
        first = pairs.iloc[1]
        assert (first["row_model"], first["row"], first["column_model"], first["column"]) == ("a", "fc", "b", "mid")
        assert (first["standard_error"], first["p_value"], first["chance"]) == (0.03, 0.001, 0.25)
        assert first["low"] < 0.6 < first["high"]


class TestInterval:
    def test_student_t_with_given_degrees(self, matrix):
        low, high = matrix.interval(0.9)
        t = stats.t(7).ppf(0.95)
        assert low[0, 1] == pytest.approx(-0.02 - t * 0.1, rel=1e-12)
        assert high[0, 1] == pytest.approx(-0.02 + t * 0.1, rel=1e-12)
        assert np.isnan(low[:, 2]).all()

    def test_degrees_of_each_cell(self):
        matrix = SimilarityMatrix(
            [[0, 0]], ["a"], ["b", "c"], standard_error=[[1, 1]], meta={"degrees_of_freedom": [[3, 9]]}
        )
        np.testing.assert_allclose(matrix.interval()[1], [stats.t([3, 9]).ppf(0.975)])

    def test_normal_without_degrees(self):
        matrix = SimilarityMatrix([[0.99]], ["a"], ["b"], standard_error=[[1]])
        low, high = matrix.interval(0.95)
        assert high[0, 0] == pytest.approx(0.99 + 1.959963984540054)  # not clamped at 1
        assert low[0, 0] == pytest.approx(0.99 - 1.959963984540054)

    def test_one_batch_has_no_interval(self):
        matrix = SimilarityMatrix([[0.9]], ["a"], ["b"], standard_error=[[0.1]], meta={"degrees_of_freedom": 0})
        assert np.isnan(matrix.interval()[0]).all()

    def test_errors(self, matrix):
        with pytest.raises(ValueError, match="has no standard error, so it has no interval"):
            SimilarityMatrix([[1]], ["a"], ["b"]).interval()
        for level in (0, 1, 95, float("nan")):
            with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1"):
                matrix.interval(level)


def test_imports_no_torch():
    code = "import sys, cka_probe.similarity; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_smaller_distance_is_more_alike():
    values = [[0.0, 0.4, 0.9], [0.4, 0.0, 0.7], [0.9, 0.7, 0.0]]
    names = ["a", "b", "c"]
    matrix = SimilarityMatrix(values, names, names, measure="procrustes", meta={"kind": "distance"})
    assert "most like b of the others (0.400)" in repr(matrix)
    assert "most like b of the others (0.700)" in repr(matrix)
    assert matrix.pairs()["value"].is_monotonic_increasing
    assert not SimilarityMatrix(values, names, names).is_distance
