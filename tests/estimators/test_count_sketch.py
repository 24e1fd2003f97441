"""Count sketches keep inner products without bias, with the variance of docs/theory.md, and are the same everywhere."""

import numpy as np
import pytest

from cka_probe.estimators.count_sketch import RowSketch, cosine_error, folded, inner_product_variance

SIZE, SEEDS = 128, 2500


def pair(cosine: float, length: int = 2000, heavy: float = 0.0) -> np.ndarray:
    """Two unit vectors with this cosine; ``heavy`` is the part of the norm that one number of both holds."""
    rng = np.random.default_rng(int(100 * cosine))
    x, z = rng.normal(size=(2, length))
    x[0], z[0] = 0, 0
    x /= np.linalg.norm(x)
    z -= (z @ x) * x
    y = cosine * x + np.sqrt(1 - cosine**2) * z / np.linalg.norm(z)
    rows = np.sqrt(1 - heavy**2) * np.stack([x, y])
    rows[:, 0] = heavy
    return rows


def sketches(rows: np.ndarray) -> np.ndarray:
    """Sketches (seeds, 2, size) of a pair in two blocks."""
    found = []
    for seed in range(SEEDS):
        sketch = RowSketch(SIZE, seed)
        sketch.add(rows[:, :700])
        sketch.add(rows[:, 700:])
        found.append(sketch.result())
    return np.stack(found)


@pytest.mark.parametrize(("cosine", "heavy"), [(0.0, 0.0), (0.6, 0.0), (0.95, 0.0), (0.5, 0.8)])
def test_inner_products_are_unbiased_and_errors_follow_their_formulas(cosine, heavy):
    rows = pair(cosine, heavy=heavy)
    truth = rows[0] @ rows[1]
    a, b = np.moveaxis(sketches(rows), 1, 0)
    inner = np.sum(a * b, axis=1)
    deviation = np.sqrt(inner_product_variance(*rows, SIZE))
    assert abs(inner.mean() - truth) < 4 * deviation / np.sqrt(SEEDS)
    assert inner.std() == pytest.approx(deviation, rel=0.06)
    cosines = inner / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    x, y = rows
    corrected = np.sqrt((1 - truth**2) ** 2 - 2 * np.sum((x * y - truth / 2 * (x * x + y * y)) ** 2)) / np.sqrt(SIZE)
    assert cosines.std() == pytest.approx(corrected, rel=0.06)
    assert cosines.std() < 1.06 * cosine_error(truth, SIZE)
    assert abs(cosines.mean() - truth) < 4 * deviation / np.sqrt(SEEDS) + truth * (1 - truth**2) / SIZE
    if not heavy:
        # The interval that a user forms: the error at the estimate, not at the unknown truth.
        covered = np.mean(np.abs(cosines - truth) <= 1.96 * cosine_error(cosines, SIZE))
        assert 0.93 <= covered <= 0.97


def test_the_bias_of_the_cosine_is_that_of_the_formula():
    a, b = np.moveaxis(sketches(pair(0.9)), 1, 0)
    cosines = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    expected = -0.9 * (1 - 0.81) / (2 * SIZE)
    assert cosines.mean() - 0.9 == pytest.approx(expected, abs=4 * cosines.std() / np.sqrt(SEEDS))


def test_it_is_the_definition_entry_by_entry():
    rows = np.random.default_rng(0).normal(size=(3, 150))
    sketch = RowSketch(64, seed=5)
    for block in (rows[:, :60], rows[:, 60:]):
        sketch.add(block)
    expected = np.zeros((3, 64))
    for number, block in enumerate((rows[:, :60], rows[:, 60:])):
        raw = np.random.PCG64(np.random.SeedSequence([5, number])).random_raw(block.shape[1])
        for place, random in enumerate(int(r) for r in raw):
            expected[:, (random >> 1) % 64] += (1 - 2 * (random & 1)) * block[:, place]
    expected /= np.linalg.norm(rows, axis=1)[:, None]
    np.testing.assert_allclose(sketch.result(), expected, rtol=1e-12, atol=1e-15)


def test_the_random_numbers_are_those_of_every_machine_and_version():
    """A change of these would make all files of sketches incomparable."""
    raw = np.random.PCG64(np.random.SeedSequence([0, 3])).random_raw(2)
    assert [int(r) for r in raw] == [16509333102296552351, 15871844912512222221]


def test_rows_no_longer_than_the_sketch_are_kept_as_they_are():
    rows = np.random.default_rng(0).normal(size=(2, 64))
    sketch = RowSketch(64, 0)
    sketch.add(rows[:, :30])
    sketch.add(rows[:, 30:])
    np.testing.assert_allclose(sketch.result(), rows / np.linalg.norm(rows, axis=1)[:, None])


def test_scales_of_activations_do_not_matter_and_zeros_stay_zeros():
    rows = np.random.default_rng(0).normal(size=(3, 500))
    rows[2] = 0
    small, large = RowSketch(64, 0), RowSketch(64, 0)
    small.add(rows)
    large.add(rows * np.array([[1e-40], [1e40], [1.0]]))
    np.testing.assert_allclose(large.result(), small.result(), rtol=1e-12)
    assert not small.result()[2].any()


@pytest.mark.parametrize("length", [512, 500, 2000])
def test_folded_rows_have_the_error_of_a_sketch(length):
    """Over many pairs, since the signs are fixed: no bias, and the variance of a sketch of 64 bins."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4000, length))
    x, y = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (x, y))
    y = 0.6 * x + 0.8 * y
    errors = np.sum(folded(x, 64) * folded(y, 64), axis=1) - np.sum(x * y, axis=1)
    cosine = np.mean(np.sum(x * y, axis=1))
    # Entries at equal places modulo 64 are length / 64 - 1 of length - 1 others.
    share = (length / 64 - 1) / (length - 1)
    assert errors.std() == pytest.approx(np.sqrt((1 + cosine**2 + 0.64 / length) * share), rel=0.08)
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(4000)


def test_rows_that_are_not_longer_keep_their_inner_products():
    x = np.random.default_rng(0).normal(size=(3, 60))
    np.testing.assert_allclose(folded(x, 64) @ folded(x, 64).T, x @ x.T, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "seed", "error", "message"),
    [
        (63, 0, ValueError, "between 64 and 4,194,304, got 63"),
        (2**23, 0, ValueError, "got 8,388,608"),
        (True, 0, TypeError, "`size` must be an integer, got True"),
        (64.0, 0, TypeError, "`size` must be an integer"),
        (64, -1, ValueError, "`seed` must lie between 0"),
        (64, "a", TypeError, "`seed` must be an integer, got 'a'"),
    ],
)
def test_wrong_sizes_and_seeds_are_errors(size, seed, error, message):
    with pytest.raises(error, match=message):
        RowSketch(size, seed)


def test_wrong_calls_are_errors():
    sketch = RowSketch(64, 0)
    with pytest.raises(ValueError, match="Nothing was added"):
        sketch.result()
    sketch.add(np.ones((2, 5)))
    with pytest.raises(ValueError, match="3 rows, those before have 2"):
        sketch.add(np.ones((3, 5)))
