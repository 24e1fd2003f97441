"""Files of similarity matrices: round trips, files of other versions and programs, damaged files."""

import json
import re

import numpy as np
import pytest

from cka_probe.similarity.matrix import SimilarityMatrix


def assert_same(left, right):
    for name in ("values", "standard_error", "p_value", "chance"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for name in ("rows", "columns", "notes", "measure", "meta", "row_models", "column_models"):
        assert getattr(left, name) == getattr(right, name)
        assert type(getattr(left, name)) is type(getattr(right, name))


def test_a_loaded_matrix_equals_the_saved_one(matrix, tmp_path):
    path = matrix.save(tmp_path / "result.npz")
    assert path == tmp_path / "result.npz"
    assert_same(SimilarityMatrix.load(path), matrix)
    assert [p.name for p in tmp_path.iterdir()] == ["result.npz"]  # no temporary file stays


def test_a_matrix_without_rows_and_a_path_as_text(tmp_path):
    matrix = SimilarityMatrix(np.empty((0, 2)), [], ["a", "b"])
    matrix.save(str(tmp_path / "no_extension"))
    assert_same(SimilarityMatrix.load(str(tmp_path / "no_extension")), matrix)


def test_numpy_reads_the_file_without_pickle(matrix, tmp_path):
    with np.load(matrix.save(tmp_path / "m.npz"), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["values"], matrix.values)
        assert json.loads(str(archive["header"]))["rows"] == ["conv1", "fc"]


def test_an_interrupted_save_leaves_the_old_file(matrix, tmp_path, monkeypatch):
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


def test_errors_for_a_missing_folder_and_a_missing_file(matrix, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"could not write .*m\.npz: the folder .*nowhere does not exist\. Create it"
    ):
        matrix.save(tmp_path / "nowhere" / "m.npz")
    with pytest.raises(FileNotFoundError, match=r"m\.npz"):
        SimilarityMatrix.load(tmp_path / "m.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00"])
def test_errors_for_other_files(tmp_path, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.npz is not a similarity matrix saved by cka_probe"):
        SimilarityMatrix.load(path)


def test_errors_for_other_numpy_files(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    np.savez(tmp_path / "b.npz", values=np.ones((2, 2)))
    np.savez(tmp_path / "c.npz", values=np.ones((1, 1)), header=np.array([{"evil": 1}], dtype=object))
    np.savez(tmp_path / "d.npz", values=np.ones((1, 1)), header=np.array('{"format": "else", "version": 1}'))
    for name in ("a.npy", "b.npz", "c.npz", "d.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a similarity matrix saved by cka_probe"):
            SimilarityMatrix.load(tmp_path / name)


def test_a_file_of_version_0_1(tmp_path):
    header = {
        "format": "cka_probe.SimilarityMatrix",
        "version": 1,
        "rows": ["conv1"],
        "columns": ["stem", "head"],
        "notes": ["stem: constant output"],
        "measure": "cka",
        "meta": {"samples": 512, "taps": [1, 2]},
        "row_models": ["a"],
        "column_models": None,
    }
    arrays = {"values": [[np.nan, 0.5]], "p_value": [[np.nan, 0.01]]}
    np.savez_compressed(tmp_path / "old.npz", header=np.array(json.dumps(header)), **arrays)
    expected = SimilarityMatrix(
        [[np.nan, 0.5]],
        ["conv1"],
        ["stem", "head"],
        p_value=[[np.nan, 0.01]],
        notes=["stem: constant output"],
        meta={"samples": 512, "taps": (1, 2)},
        row_models=["a"],
    )
    assert_same(SimilarityMatrix.load(tmp_path / "old.npz"), expected)


def test_error_for_a_file_of_a_newer_version(tmp_path):
    header = json.dumps({"format": "cka_probe.SimilarityMatrix", "version": 99, "rows": [], "columns": []})
    np.savez(tmp_path / "new.npz", values=np.empty((0, 0)), header=np.array(header))
    with pytest.raises(ValueError, match=r"new\.npz was saved in version 99 .* reads version 1. Update cka_probe"):
        SimilarityMatrix.load(tmp_path / "new.npz")


def test_a_damaged_file_raises_value_error_or_holds_the_same_values(matrix, tmp_path):
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.csv", "`.to_csv(path)` writes a table; save it as x.npz"),
        ("x.PNG", "`.plot().figure.savefig(path)` draws a picture"),
        ("x.html", "write_report"),
        ("x.tex", "`.to_latex()`"),
        ("x.pt", "`save` writes .npz files: save it as x.npz"),
    ],
)
def test_endings_of_other_formats_are_refused(matrix, tmp_path, name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        matrix.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_endings_in_capital_letters_are_the_same(matrix, tmp_path):
    assert_same(SimilarityMatrix.load(matrix.save(tmp_path / "x.NPZ")), matrix)
