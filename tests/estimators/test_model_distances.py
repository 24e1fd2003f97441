"""Distances between models: by brute force over all alignments, and the axioms that are stated."""

import itertools

import numpy as np
import pytest

from cka_probe.estimators.model_distances import (
    MODEL_DISTANCES,
    angles,
    best_match_distance,
    elastic_distance,
    frechet_distance,
    row_of_distances,
)


def alignments(m: int, n: int):
    """All paths from (0, 0) to (m-1, n-1) with steps (1, 0), (0, 1) and (1, 1)."""
    if (m, n) == (1, 1):
        yield [(0, 0)]
        return
    for before in ((m - 1, n), (m, n - 1), (m - 1, n - 1)):
        if min(before) > 0:
            for path in alignments(*before):
                yield [*path, (m - 1, n - 1)]


def weight(before, here) -> int:
    return (here[0] - before[0]) + (here[1] - before[1])


def sequences(count: int, seed: int, *, longest: int = 4, dimension: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = [rng.normal(size=(rng.integers(1, longest + 1), dimension)) for _ in range(count)]
    return [x / np.linalg.norm(x, axis=1)[:, None] for x in found]


def between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return angles(x @ y.T)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3), (4, 2), (4, 5)])
def test_alignments_are_the_best_of_all(shape):
    a = np.random.default_rng(sum(shape)).uniform(0, np.pi, size=shape)
    sums, largest = [], []
    for path in alignments(*shape):
        steps = zip([(-1, -1), *path[:-1]], path, strict=True)
        sums.append(sum(weight(before, here) * a[here] for before, here in steps) / sum(shape))
        largest.append(max(a[here] for here in path))
    assert elastic_distance(a) == pytest.approx(min(sums), abs=1e-12)
    assert frechet_distance(a) == min(largest)
    rows = [min(row) for row in a.tolist()]
    columns = [min(column) for column in a.T.tolist()]
    assert best_match_distance(a) == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, abs=1e-12)


def test_every_alignment_has_the_weight_of_both_lengths():
    for path in alignments(3, 4):
        assert sum(weight(b, h) for b, h in zip([(-1, -1), *path[:-1]], path, strict=True)) == 7


@pytest.mark.parametrize("how", MODEL_DISTANCES)
def test_axioms_that_all_have(how):
    distance = MODEL_DISTANCES[how]
    for x, y in itertools.product(sequences(8, 0), sequences(8, 1)):
        assert distance(between(x, y)) > 0
        assert distance(between(x, y)) == pytest.approx(distance(between(y, x)), abs=1e-12)
        assert distance(between(x, y)) <= np.pi
    for x in sequences(8, 2):
        assert distance(between(x, x)) == pytest.approx(0, abs=1e-7)  # arccos(1 - 1e-16)
        assert distance(between(x, np.repeat(x, 2, axis=0))) == pytest.approx(0, abs=1e-7)


def test_the_order_counts_in_alignments_only():
    x = np.eye(3)
    assert best_match_distance(between(x, x[::-1])) == 0
    assert elastic_distance(between(x, x[::-1])) > 0.5
    assert frechet_distance(between(x, x[::-1])) == pytest.approx(np.pi / 2)


def test_the_triangle_inequality_holds_for_frechet():
    models = sequences(14, 3)
    for x, y, z in itertools.permutations(models, 3):
        whole = frechet_distance(between(x, z))
        assert whole <= frechet_distance(between(x, y)) + frechet_distance(between(y, z)) + 1e-12


def test_the_triangle_inequality_can_fail_for_the_others():
    """Model y has a layer of x and one of z, so it is near to both, which are far from each other."""
    x, z = np.eye(4)[[0, 0, 0, 1]], np.eye(4)[[2, 3, 3, 3]]
    y = np.eye(4)[[0, 1, 2, 3]]
    assert best_match_distance(between(x, z)) > best_match_distance(between(x, y)) + best_match_distance(between(y, z))
    rng_models = sequences(12, 5, longest=5, dimension=2)
    slack = [
        elastic_distance(between(a, c)) - elastic_distance(between(a, b)) - elastic_distance(between(b, c))
        for a, b, c in itertools.permutations(rng_models, 3)
    ]
    assert max(slack) > 0.01


def test_elastic_is_at_least_best_match_for_equal_depth():
    for x, y in itertools.combinations([s for s in sequences(40, 6) if len(s) == 3], 2):
        assert elastic_distance(between(x, y)) >= best_match_distance(between(x, y)) - 1e-12


@pytest.mark.parametrize("how", MODEL_DISTANCES)
def test_a_row_holds_the_distances_to_each_model(how):
    models = sequences(6, 7)
    together = np.concatenate(models)
    row = row_of_distances(models[2] @ together.T, [len(x) for x in models], how, first=1)
    expected = [float(MODEL_DISTANCES[how](between(models[2], y))) for y in models]
    assert np.isnan(row[0])
    np.testing.assert_allclose(row[1:], expected[1:], atol=1e-12)


def test_undefined_layers_are_left_out():
    x, y = sequences(2, 8)
    similarities = np.full((len(x) + 1, len(y) + 2), np.nan)
    similarities[: len(x), 1 : 1 + len(y)] = x @ y.T
    row = row_of_distances(similarities, [len(y) + 1, 1], "elastic")
    assert row[0] == pytest.approx(float(elastic_distance(between(x, y))), abs=1e-12)
    assert np.isnan(row[1])
    assert np.isnan(row_of_distances(np.full((2, 3), np.nan), [3], "elastic")).all()


def test_no_layers_are_an_error():
    for distance in MODEL_DISTANCES.values():
        with pytest.raises(ValueError, match=r"at least one layer each, got \(0, 3\)"):
            distance(np.zeros((0, 3)))
