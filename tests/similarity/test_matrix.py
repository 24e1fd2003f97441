"""SimilarityMatrix: what goes in comes out, and what does not fit is refused in words."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cka_probe.similarity.matrix import SimilarityMatrix


@pytest.fixture
def matrix():
    return SimilarityMatrix(
        np.array([[0.9, -0.02, np.nan], [0.3, 0.6, np.nan]]),
        ["conv1", "fc"],
        ["stem", "mid", "dead"],
        standard_error=[[0.01, 0.1, np.nan], [0.02, 0.03, np.nan]],
        p_value=[[0, 0.7, np.nan], [0.01, 0.001, np.nan]],
        chance=np.full((2, 3), 0.25),
        notes=["dead: constant output"],
        measure="cka",
        meta={"kernel": "Linear()", "samples": np.int64(512), "degrees_of_freedom": 7, "taps": (1, 2), "model_x": "a"},
        row_models=["a", "a"],
        column_models=["b", "b", "ü"],
    )


def assert_same(left, right):
    for name in ("values", "standard_error", "p_value", "chance"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for name in ("rows", "columns", "notes", "measure", "meta", "row_models", "column_models"):
        assert getattr(left, name) == getattr(right, name)
        assert type(getattr(left, name)) is type(getattr(right, name))


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

    def test_meta_is_what_it_will_be_after_loading(self, matrix):
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
    def test_refuses(self, change, error, match):
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

    def test_pairs_sorted_with_all_that_is_known(self, matrix):
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

    def test_refuses(self, matrix):
        with pytest.raises(ValueError, match="has no standard error, so it has no interval"):
            SimilarityMatrix([[1]], ["a"], ["b"]).interval()
        for level in (0, 1, 95, float("nan")):
            with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1"):
                matrix.interval(level)


class TestFile:
    def test_round_trip(self, matrix, tmp_path):
        path = matrix.save(tmp_path / "result.npz")
        assert path == tmp_path / "result.npz"
        assert_same(SimilarityMatrix.load(path), matrix)
        assert [p.name for p in tmp_path.iterdir()] == ["result.npz"]  # no temporary file stays

    def test_round_trip_of_the_bare_minimum_and_of_text_paths(self, tmp_path):
        matrix = SimilarityMatrix(np.empty((0, 2)), [], ["a", "b"])
        matrix.save(str(tmp_path / "no_extension"))
        assert_same(SimilarityMatrix.load(str(tmp_path / "no_extension")), matrix)

    def test_opens_with_numpy_alone_without_pickle(self, matrix, tmp_path):
        with np.load(matrix.save(tmp_path / "m.npz"), allow_pickle=False) as archive:
            np.testing.assert_array_equal(archive["values"], matrix.values)
            assert json.loads(str(archive["header"]))["rows"] == ["conv1", "fc"]

    def test_an_interrupted_save_leaves_the_old_file(self, matrix, tmp_path, monkeypatch):
        path = matrix.save(tmp_path / "m.npz")
        before = path.read_bytes()

        def fail(file, **arrays):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez_compressed", fail)
        with pytest.raises(KeyboardInterrupt):
            SimilarityMatrix([[1]], ["a"], ["b"]).save(path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]

    def test_missing_places(self, matrix, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no directory .*nowhere\. Create it first"):
            matrix.save(tmp_path / "nowhere" / "m.npz")
        with pytest.raises(FileNotFoundError, match=r"m\.npz"):
            SimilarityMatrix.load(tmp_path / "m.npz")

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00"])
    def test_not_ours(self, tmp_path, content):
        path = tmp_path / "other.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.npz is not a similarity matrix saved by cka_probe"):
            SimilarityMatrix.load(path)

    def test_other_numpy_files(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones(3))
        np.savez(tmp_path / "b.npz", values=np.ones((2, 2)))
        np.savez(tmp_path / "c.npz", values=np.ones((1, 1)), header=np.array([{"evil": 1}], dtype=object))
        np.savez(tmp_path / "d.npz", values=np.ones((1, 1)), header=np.array('{"format": "else", "version": 1}'))
        for name in ("a.npy", "b.npz", "c.npz", "d.npz"):
            with pytest.raises(ValueError, match=f"{name} is not a similarity matrix saved by cka_probe"):
                SimilarityMatrix.load(tmp_path / name)

    def test_newer_version(self, tmp_path):
        header = json.dumps({"format": "cka_probe.SimilarityMatrix", "version": 99, "rows": [], "columns": []})
        np.savez(tmp_path / "new.npz", values=np.empty((0, 0)), header=np.array(header))
        with pytest.raises(ValueError, match=r"new\.npz was saved in version 99 .* reads version 1. Update cka_probe"):
            SimilarityMatrix.load(tmp_path / "new.npz")

    def test_every_damage_is_a_value_error_or_harmless(self, matrix, tmp_path):
        content = matrix.save(tmp_path / "m.npz").read_bytes()
        rng = np.random.default_rng(0)
        path = tmp_path / "damaged.npz"
        refused = 0
        for _ in range(300):
            damaged = bytearray(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
            if damaged:
                damaged[rng.integers(len(damaged))] ^= rng.integers(1, 256)
            path.write_bytes(damaged)
            try:
                loaded = SimilarityMatrix.load(path)
            except ValueError as error:
                refused += 1
                assert "damaged.npz" in str(error)  # noqa: PT017
            else:
                np.testing.assert_array_equal(loaded.values, matrix.values)
        assert refused > 200


class TestSummary:
    def test_repr_says_what_a_reader_asks_first(self, matrix):
        text = repr(matrix)
        assert "SimilarityMatrix: cka, 2 x 3 layers" in text
        assert "-0.020 to 0.900, median 0.450; 2 of 6 undefined" in text
        assert "a: conv1" in text
        assert "most like b: stem (0.900)" in text
        assert "kernel Linear(), samples 512" in text
        assert "dead: constant output" in text
        assert "up to 0.1" in text
        assert "0.250 to 0.250" in text

    def test_self_comparison_looks_past_the_diagonal(self):
        matrix = SimilarityMatrix([[1, 0.2, np.nan], [0.2, 1, np.nan], [np.nan] * 3], list("abc"), list("abc"))
        text = repr(matrix)
        assert "most like b of the others (0.200)" in text
        assert "most like a of the others (0.200)" in text

    def test_long_matrices_stay_short(self):
        names = [f"layer{i}" for i in range(100)]
        lines = repr(SimilarityMatrix(np.random.default_rng(0).random((100, 100)), names, names)).splitlines()
        assert len(lines) < 12
        assert any("94 more rows" in line for line in lines)

    def test_nothing_to_say_is_said(self):
        assert "all undefined" in repr(SimilarityMatrix([[np.nan]], ["a"], ["b"]))
        assert "0 x 0 layers" in repr(SimilarityMatrix(np.empty((0, 0)), [], []))

    def test_html_escapes_names(self):
        matrix = SimilarityMatrix([[1.0, np.nan]], ["<script>x</script>"], ["a&b", "c"], notes=["<b>dead</b>"])
        text = matrix._repr_html_()
        assert "<script>" not in text
        assert "<b>" not in text
        assert "&lt;script&gt;" in text
        assert "undefined" in text
        assert "1.000" in text


def test_imports_no_torch():
    code = "import sys, cka_probe.similarity; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_a_distance_less_is_more_alike():
    values = [[0.0, 0.4, 0.9], [0.4, 0.0, 0.7], [0.9, 0.7, 0.0]]
    names = ["a", "b", "c"]
    matrix = SimilarityMatrix(values, names, names, measure="procrustes", meta={"kind": "distance"})
    assert "most like b of the others (0.400)" in repr(matrix)
    assert "most like b of the others (0.700)" in repr(matrix)
    assert matrix.pairs()["value"].is_monotonic_increasing
    assert not SimilarityMatrix(values, names, names).is_distance
