"""More arrays on the same pairs of layers: kept, cut, saved, tabulated, and made a matrix of their own."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cka_probe import SimilarityMatrix
from cka_probe.cli.output import as_json as result_as_json


def matrix(**changes):
    given = {
        "values": [[0.1, 0.2, 0.3], [0.4, 0.5, np.nan]],
        "rows": ["a", "b"],
        "columns": ["c", "d", "e"],
        "measure": "mmd",
        "meta": {"kind": "distance", "samples": 9},
        "extra": {
            "cka": [[0.9, 0.8, 0.7], [0.6, 0.5, np.nan]],
            "cka standard_error": np.full((2, 3), 0.01),
            "upper": np.ones((2, 3)),
        },
    }
    return SimilarityMatrix(**{**given, **changes})


def test_cut_saved_and_loaded(tmp_path):
    part = matrix().select(rows="b", columns=["d", "c"])
    assert_array_equal(part.extra["cka"], [[0.5, 0.6]])
    loaded = SimilarityMatrix.load(part.save(tmp_path / "m.npz"))
    assert list(loaded.extra) == ["cka", "cka standard_error", "upper"]
    for name, array in part.extra.items():
        assert_array_equal(loaded.extra[name], array)
    assert matrix().rename(rows={"a": "z"}).extra.keys() == matrix().extra.keys()


def test_a_file_without_them_is_as_before(tmp_path):
    path = matrix(extra=None).save(tmp_path / "m.npz")
    with np.load(path) as archive:
        assert "extra" not in json.loads(str(archive["header"]))
    assert SimilarityMatrix.load(path).extra == {}


def test_other_is_a_matrix_of_its_own():
    cka = matrix().other("cka")
    assert (cka.measure, cka.is_distance, cka["a", "c"]) == ("cka", False, 0.9)
    assert_array_equal(cka.standard_error, np.full((2, 3), 0.01))
    assert cka.extra == {}
    assert matrix().other("upper").standard_error is None
    with pytest.raises(KeyError, match=r"no 'nothing' beside it\. It has: cka, cka standard_error, upper"):
        matrix().other("nothing")


def test_tables_and_summary_show_them():
    table = matrix().pairs()
    assert table.loc[0, "cka"] == 0.9
    assert "cka, cka standard_error, upper; see .other()" in repr(matrix())
    assert result_as_json(matrix())["extra"]["cka"][1] == [0.6, 0.5, None]
    assert matrix().best_match()["upper"].tolist() == [1.0, 1.0]


def test_refused():
    with pytest.raises(ValueError, match=r"`extra\['cka'\]` must have the shape of `values`, \(2, 3\), got \(1, 3\)"):
        matrix(extra={"cka": [[1.0, 2.0, 3.0]]})
    with pytest.raises(TypeError, match=r"`extra\['cka'\]` must hold real numbers"):
        matrix(extra={"cka": [["a"] * 3] * 2})
    with pytest.raises(TypeError, match="`extra`"):
        matrix(extra={3: np.ones((2, 3))})


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        matrix().extra["cka"][0, 0] = 1.0
