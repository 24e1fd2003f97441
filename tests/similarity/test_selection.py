"""Cells by name, chosen rows and columns, other names."""

import numpy as np
import pytest

from cka_probe.similarity.matrix import SimilarityMatrix

NAMES = ["stem", "layer1.0.conv1", "layer1.0.relu", "layer1.0.relu#2", "layer1.1", "layer2", "fc"]


@pytest.fixture
def plain():
    rng = np.random.default_rng(0)
    count = len(NAMES)
    return SimilarityMatrix(
        rng.random((count, 3)),
        NAMES,
        ["a", "b", "c[0]"],
        standard_error=rng.random((count, 3)),
        p_value=rng.random((count, 3)),
        chance=rng.random((count, 3)),
        notes=["stem: a note"],
        meta={"model_x": "x", "degrees_of_freedom": np.arange(1, 3 * count + 1).reshape(count, 3)},
    )


@pytest.fixture
def several():
    models, layers = ["one", "one", "two", "two"], ["conv", "fc", "conv", "head"]
    return SimilarityMatrix(np.arange(16.0).reshape(4, 4), layers, layers, row_models=models, column_models=models)


def test_a_cell_by_its_names(plain, several):
    for r, row in enumerate(NAMES):
        for c, column in enumerate(["a", "b", "c[0]"]):
            assert plain[row, column] == plain.values[r, c]
    assert type(plain["fc", "a"]) is float
    assert several["fc", "head"] == 7  # names of one model only
    assert several[("two", "conv"), ("one", "conv")] == 8
    assert several["two: conv", "one: fc"] == 9
    assert len(plain) == 7
    assert len(several) == 4


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        (("layer3", "a"), KeyError, "There is no row 'layer3'. Did you mean 'layer2'"),
        (("fc", "z"), KeyError, "There is no column 'z'. The columns are 'a', 'b', 'c[0]'."),
        (("fc", ("x", "a")), KeyError, "The columns are of one model: give the layer name alone"),
        ("fc", TypeError, 'result.select(rows="name")'),
        ((0, 1), TypeError, "For positions use result.values[0, 1]"),
        (slice(None), TypeError, 'Give a row and a column, result["row", "column"]'),
    ],
)
def test_a_key_that_is_no_cell(plain, key, kind, message):
    with pytest.raises(kind) as error:
        plain[key]
    assert message in str(error.value)


def test_a_name_of_several_models_must_say_which(several):
    with pytest.raises(KeyError) as error:
        several["conv", "head"]
    assert str(error.value) == "'conv' is a row of several models. Say which: ('one', 'conv') or ('two', 'conv')."
    with pytest.raises(KeyError, match="A tuple is"):
        several[("three", "conv"), "head"]
    with pytest.raises(KeyError, match="The rows of 'one' are 'conv', 'fc'"):
        several[("one", "zzz"), "head"]


def test_two_layers_of_one_name_are_not_mixed_up():
    with pytest.raises(KeyError, match="2 rows are called 'a'"):
        SimilarityMatrix([[1], [2]], ["a", "a"], ["b"])["a", "b"]


def test_numpy_reads_the_values(plain):
    np.testing.assert_array_equal(np.asarray(plain), plain.values)
    assert np.asarray(plain, dtype=np.float32).dtype == np.float32


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, NAMES),
        ("fc", ["fc"]),
        (["fc", "stem"], ["fc", "stem"]),
        ("layer1.*", ["layer1.1"]),  # one star stops at a dot
        ("layer1.**", ["layer1.0.conv1", "layer1.0.relu", "layer1.0.relu#2", "layer1.1"]),
        ("layer?", ["layer2"]),
        ("layer1.0.*[!u]", ["layer1.0.conv1", "layer1.0.relu#2"]),
        ("re:relu", ["layer1.0.relu", "layer1.0.relu#2"]),
        (["layer2", "layer*", "fc", "fc"], ["layer2", "fc"]),
    ],
)
def test_rows_by_names_globs_and_lists(plain, rows, expected):
    chosen = plain.select(rows=rows)
    at = [NAMES.index(name) for name in expected]
    assert list(chosen.rows) == expected
    for name in ("values", "standard_error", "p_value", "chance"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(plain, name)[at])
    assert chosen.notes == plain.notes
    assert chosen.columns == plain.columns
    # Intervals stay those of the cells, which have different degrees of freedom here.
    for end, whole in zip(chosen.interval(), plain.interval(), strict=True):
        np.testing.assert_array_equal(end, whole[at])


def test_a_name_with_marks_of_a_glob_is_found_as_it_is(plain):
    assert plain.select(columns="c[0]").columns == ("c[0]",)
    both = plain.select("fc", ["c[0]", "a"])
    np.testing.assert_array_equal(both.values, plain.values[6:, [2, 0]])


def test_layers_of_several_models(several):
    assert several.select(rows="conv").row_labels == ("one: conv", "two: conv")
    assert several.select(rows=("two", "**")).row_labels == ("two: conv", "two: head")
    assert several.select(columns=[("two", "head"), ("o*", "*")]).column_models == ("two", "one", "one")
    assert several.select("two: head", "one: fc").values.tolist() == [[13]]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ("layer9", ValueError, "No row matches 'layer9'. Did you mean 'layer2'"),
        (["fc", "x*"], ValueError, "No row matches 'x*'"),
        ("re:(", ValueError, "is not a valid regular expression"),
        (3, TypeError, "`rows` must be a name, a pattern"),
        ([0], TypeError, "`rows` must hold names, patterns or (model, layer), got 0"),
        ({"fc": "head"}, TypeError, "got dict"),
    ],
)
def test_a_selector_that_means_nothing(plain, rows, kind, message):
    with pytest.raises(kind) as error:
        plain.select(rows=rows)
    assert message in str(error.value)


def test_other_names(plain, several):
    renamed = plain.rename(rows={"stem": "first", "fc": "last"}, columns=str.upper)
    assert renamed.rows[0] == "first"
    assert renamed.rows[1:6] == tuple(NAMES[1:6])
    assert renamed.rows[6] == "last"
    assert renamed.columns == ("A", "B", "C[0]")
    np.testing.assert_array_equal(renamed.values, plain.values)
    np.testing.assert_array_equal(renamed.p_value, plain.p_value)
    assert renamed.meta == plain.meta
    one = several.rename(rows={("two", "conv"): "stem"})
    assert one.row_labels == ("one: conv", "one: fc", "two: stem", "two: head")
    assert several.rename(rows={"conv": "stem"}).rows == ("stem", "fc", "stem", "head")
    assert plain.rename().rows == plain.rows


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"fcc": "x"}, ValueError, "There is no row 'fcc' to rename. Did you mean 'fc'"),
        ({"fc": "stem"}, ValueError, "Two rows would be called 'stem'"),
        (lambda _: "x", ValueError, "Two rows would be called 'x'"),
        ({"fc": 3}, TypeError, "must be a string, got 3"),
        (["a"], TypeError, "must be a mapping of old to new names or a function"),
    ],
)
def test_names_that_cannot_be_given(plain, change, kind, message):
    with pytest.raises(kind) as error:
        plain.rename(rows=change)
    assert message in str(error.value)
