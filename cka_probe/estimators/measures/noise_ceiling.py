"""Representational similarity analysis against repeated measurements, with the noise ceiling that they set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from array_api_compat import array_namespace

from ..distances import safe_sqrt
from ..validation import Array, check_layer_lists, check_pair
from .dissimilarities import prepare

__all__ = ["CorrectedRSA", "rsa_corrected"]


class CorrectedRSA(NamedTuple):
    """RSA of a layer with repeats of another, and the bounds that the differences between the repeats set.

    Attributes
    ----------
    value : array ()
        Mean RSA of the layer with each repeat.
    lower, upper : array ()
        The noise ceiling: ``lower`` is the mean RSA of each repeat with the mean of the others, ``upper`` that with the
        mean of all. No dissimilarities reach a higher ``value`` than ``upper``.
    corrected : array ()
        value / upper, at most 1.
    """

    value: Array
    lower: Array
    upper: Array
    corrected: Array


def rsa_corrected(
    x: Array, repeats: Sequence[Array], *, comparison: str = "spearman", dissimilarity: str = "correlation"
) -> CorrectedRSA:
    """RSA of a layer with repeats of another one, corrected by the noise ceiling.

    Networks of several seeds differ as repeated measurements do. RSA of a layer with one of them mixes what the layers
    do not share with what the seeds do not share. The noise ceiling is the largest RSA that any layer could reach.

    Parameters
    ----------
    x : array (n, p)
        Features of the layer, n >= 3.
    repeats : sequence of arrays (n, q_i)
        Features of the same samples in at least two repeats of the other layer, for example from networks of several
        seeds. Their widths may differ.
    comparison, dissimilarity
        As ``rsa``. With "spearman" the dissimilarities are replaced by their ranks before any mean.

    Returns
    -------
    CorrectedRSA
        Arrays () of float64. NaN if all dissimilarities of a layer are equal.

    Raises
    ------
    TypeError
        As ``rsa``, and if ``repeats`` is one array.
    ValueError
        As ``rsa``; the message names the repeat by its place. Also if there are fewer than two repeats.

    References
    ----------
    Nili et al., A Toolbox for Representational Similarity Analysis, PLoS Computational Biology 2014 (the noise
    ceiling). With ``comparison="pearson"`` the bounds are those of rsatoolbox's ``boot_noise_ceiling(method="corr")``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(20, 8))
    >>> found = rsa_corrected(x, [x + rng.normal(size=(20, 8)) for _ in range(4)])
    >>> bool(found.lower < found.upper), bool(found.value < found.corrected <= 1)
    (True, True)
    """
    check_layer_lists([x], repeats)
    if len(repeats) < 2:
        raise ValueError(f"`repeats` must hold at least two repeats of the layer, got {len(repeats)}.")
    vectors = []
    for place, repeat in enumerate(repeats):
        _, one, other = check_pair(x, repeat, ("x", f"repeats[{place}]"), minimum=3)
        vectors.append(prepare(other, comparison=comparison, dissimilarity=dissimilarity))
    xp = array_namespace(one)
    stacked = xp.stack(vectors)
    layer = prepare(one, comparison=comparison, dissimilarity=dissimilarity)
    mean = xp.mean(stacked, axis=0)
    value, upper = xp.sum(layer * mean), safe_sqrt(xp, xp.sum(mean * mean))
    count = len(repeats)
    others = (count * mean[None, ...] - stacked) / (count - 1)
    norms = safe_sqrt(xp, xp.sum(others * others, axis=-1))
    lower = xp.mean(xp.sum(others * stacked, axis=-1) / norms)
    return CorrectedRSA(value, lower, upper, value / upper)
