"""Third and fourth moments of CKA over all permutations, and the table of graphs that they are computed from."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from libraries import to_numpy
from numpy.testing import assert_allclose

from cka_probe.estimators import MinibatchCKA, cka_matrix_test, cka_test, u_center_gram
from cka_probe.estimators import null_moments as nm
from cka_probe.estimators.kernels import Linear

ORDER = {
    3: [((0, 1), (0, 1), (0, 1)), ((0, 1), (0, 2), (1, 2))],
    4: [
        ((0, 1), (0, 1), (0, 1), (0, 1)),
        ((0, 1), (0, 1), (0, 2), (0, 2)),
        ((0, 1), (0, 1), (0, 2), (1, 2)),
        ((0, 1), (0, 2), (1, 3), (2, 3)),
        ((0, 1), (0, 1), (2, 3), (2, 3)),
    ],
}
"""The graphs of the sums over a Gram matrix, in their order."""


def partitions(items):
    if not items:
        yield []
        return
    first, *rest = items
    for part in partitions(rest):
        for i in range(len(part)):
            yield [*part[:i], [first, *part[i]], *part[i + 1 :]]
        yield [[first], *part]


def form(edges):
    """The same for graphs that differ only in the names of their vertices."""
    names = sorted({v for edge in edges for v in edge})
    renamed = [dict(zip(names, p, strict=True)) for p in itertools.permutations(range(len(names)))]
    return min(tuple(sorted(tuple(sorted((new[a], new[b]))) for a, b in edges)) for new in renamed)


def joined(edges, blocks):
    place = {v: i for i, block in enumerate(blocks) for v in block}
    return [(place[a], place[b]) for a, b in edges]


def graphs(k):
    """All sequences of k pairs, counted by their form: of 2k ends, those that are the same sample are joined."""
    found = Counter()
    for blocks in partitions(list(range(2 * k))):
        edges = joined([(2 * i, 2 * i + 1) for i in range(k)], blocks)
        if all(a != b for a, b in edges):
            found[form(edges)] += 1
    return found


def terms(edges):
    """The sum over samples that all differ, by sums over all samples (Moebius inversion on set partitions).

    A sum over all samples is 0 if a pair holds one sample twice, or if a sample is in one pair only.
    """
    found = Counter()
    for blocks in partitions(sorted({v for edge in edges for v in edge})):
        merged = joined(edges, blocks)
        degrees = Counter(v for edge in merged for v in edge)
        if all(a != b for a, b in merged) and min(degrees.values()) > 1:
            found[form(merged)] += math.prod((-1) ** (len(b) - 1) * math.factorial(len(b) - 1) for b in blocks)
    return found


def heavy(rng, n, p=3):
    return u_center_gram((lambda x: x @ x.T)(rng.lognormal(size=(n, p))))


@pytest.mark.parametrize(("k", "table"), [(3, nm._THIRD), (4, nm._FOURTH)])
def test_the_table_of_graphs_follows_from_the_partitions(k, table):
    expected = []
    for graph, sequences in graphs(k).items():
        found = terms(graph)
        assert set(found) <= set(ORDER[k])
        samples = len({v for edge in graph for v in edge})
        expected.append((sequences, samples, tuple(found[one] for one in ORDER[k])))
    assert sorted(table) == sorted(expected)


@given(st.integers(0, 10**6), st.integers(4, 7))
def test_sums_and_moments_of_any_symmetric_matrices(seed, n):
    """By brute force: the sums by loops over samples, the moments over all n! permutations."""
    rng = np.random.default_rng(seed)
    a, b = (u_center_gram((lambda m: m + m.T)(rng.normal(size=(n, n)))) for _ in range(2))
    sums = [nm.null_sums(m) for m in (a, b)]
    expected = []
    for graph in (*ORDER[3], *ORDER[4]):
        samples = range(len({v for edge in graph for v in edge}))
        every = itertools.product(range(n), repeat=len(samples))
        expected.append(sum(math.prod(a[v[i], v[j]] for i, j in graph) for v in every))
    assert_allclose(sums[0], expected, atol=1e-9)
    null = np.array([np.sum(a * b[np.ix_(p, p)]) for p in map(list, itertools.permutations(range(n)))])
    third, fourth = (f(sums[0][None], sums[1][None], n)[0, 0] for f in (nm.third_moment, nm.fourth_cumulant))
    size = np.sqrt(np.mean(null**2))
    assert_allclose(third, np.mean(null**3), atol=1e-9 * size**3)
    assert_allclose(fourth, np.mean(null**4) - 3 * size**4, atol=1e-9 * size**4)


@pytest.mark.parametrize("n", [nm.HALVED, nm.HALVED + 1])
def test_large_matrices_are_multiplied_by_halves(xp, rng, n):
    grams = np.stack([heavy(rng, n) for _ in range(2)])
    squares, products = grams**2, grams @ grams
    expected = np.stack(
        [
            np.sum(grams**3, (1, 2)), np.trace(products @ grams, axis1=1, axis2=2), np.sum(grams**4, (1, 2)),
            np.sum(squares.sum(1) ** 2, 1), np.sum(squares * products, (1, 2)),
            np.trace(products @ products, axis1=1, axis2=2), np.sum(squares, (1, 2)) ** 2,
        ],
        axis=1,
    )  # fmt: skip
    assert_allclose(to_numpy(nm.null_sums(xp.asarray(grams))), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_kurtosis_of_the_test_is_that_of_all_permutations(xp, rng, n):
    x, y = rng.normal(size=(n, 2)), rng.lognormal(size=(n, 3))
    null = reference.null_distribution(reference.centred_linear_gram(x), reference.centred_linear_gram(y))
    excess = np.mean(null**4) / np.mean(null**2) ** 2 - 3
    assert_allclose(float(cka_test(xp.asarray(x), xp.asarray(y)).excess_kurtosis), excess, rtol=1e-8)


def test_fourth_cumulants_of_minibatches_add_up(xp, rng):
    statistics, variance, fourth = MinibatchCKA(), 0.0, 0.0
    for n in (4, 5, 6):
        x, y = rng.lognormal(size=(n, 2)), rng.lognormal(size=(n, 3))
        statistics.update([xp.asarray(x)], [xp.asarray(y)])
        a, b = reference.centred_linear_gram(x), reference.centred_linear_gram(y)
        null = reference.null_distribution(a, b) * n * np.sqrt(reference.hsic1(a, a) * reference.hsic1(b, b))
        variance += np.mean(null**2)
        fourth += np.mean(null**4) - 3 * np.mean(null**2) ** 2
    assert_allclose(float(statistics.sums["null_fourth"][0, 0]), fourth, rtol=1e-9)
    sums = statistics.sums
    shape = nm.null_shape_of(sums["null_variance"], sums["null_third"], sums["null_fourth"])
    assert_allclose(float(shape.excess_kurtosis[0, 0]), fourth / variance**2, rtol=1e-9)


def test_estimate_for_more_samples(rng):
    """From 500 of 2000 samples, on average over draws, within the noise of 20 draws; without the correction far off."""
    x, y = (rng.normal(size=(2000, 3)) * np.exp(rng.normal(size=(2000, 1)) / 2) for _ in range(2))
    exact = cka_matrix_test([x], [y])
    drawn = []
    for _ in range(20):
        some = rng.permutation(2000)[:500]
        drawn.append(nm.null_shape(*(nm.unit_sums([side[some]], Linear(), 2000) for side in (x, y)), 2000))
    assert_allclose(np.mean([d.skewness for d in drawn]), exact.skewness[0, 0], rtol=0.05)
    assert_allclose(np.mean([d.excess_kurtosis for d in drawn]), exact.excess_kurtosis[0, 0], rtol=0.1)


@pytest.mark.parametrize(("size", "parts"), [(1e-30, 0), (1e-15, 2), (1.0, 2), (1e15, 2), (1e22, 1), (1e30, 0)])
def test_beyond_the_range_of_powers_fewer_moments_are_known(rng, size, parts):
    """Activations of 1e22 have no sixteenth power in float64, those of 1e30 no twelfth. No moment is ever wrong."""
    x, y = rng.lognormal(size=(2, 12, 3))
    statistics, exact = MinibatchCKA(), cka_test(x, y)
    statistics.update([x * size], [y * size])
    sums = statistics.sums
    found = nm.null_shape_of(sums["null_variance"], sums["null_third"], sums["null_fourth"])
    for number, (value, right) in enumerate(zip(found, (exact.skewness, exact.excess_kurtosis), strict=True)):
        if number < parts:
            assert_allclose(value[0, 0], right, rtol=1e-6)
        else:
            assert value[0, 0] == 0
    assert 0 < statistics.p_value()[0, 0] <= 1
