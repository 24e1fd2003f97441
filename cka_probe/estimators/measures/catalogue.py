"""All measures by name, each with its kind, its range, its invariances, and its matrix over lists of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal, NamedTuple

from array_api_compat import array_namespace

from ..alignment import normalized_gram
from ..kernels import Kernel, Linear
from ..validation import Array, check_pair
from . import canonical, dissimilarities, layer_mmd, neighbours, predictors, shapes, subspaces
from .pairing import Pair, all_pairs, prepare_layers

__all__ = ["MEASURES", "Measure", "MeasureMatrix", "uncentred_alignment"]


class MeasureMatrix(NamedTuple):
    """Values of a measure for all pairs of layers (layers_x, layers_y), and their chance levels where known."""

    values: Array
    chance: Array | None


@dataclass(frozen=True)
class Measure:
    """A similarity or distance of two layers.

    Attributes
    ----------
    function : callable
        ``function(x, y, **options)`` takes features (n, p) and (n, q) of the same samples and returns a 0-d array of
        float64.
    prepare : callable
        ``prepare(x, **options)`` computes the statistics of one layer from checked features.
    pair : callable
        ``pair(a, b)`` computes the value from the statistics of two layers.
    kind : "similarity" or "distance"
        The more alike two layers are, the larger is a similarity and the smaller a distance.
    limits : tuple of float
        Smallest and largest possible value.
    invariances : str
        Changes of the features that leave the value unchanged.
    symmetric : bool
        Whether ``function(x, y) == function(y, x)``.
    minimum : int
        Smallest number of samples.
    chance_pair : callable, optional
        ``chance_pair(a, b)`` computes the chance level from the statistics of two layers.
    """

    function: Callable[..., Array]
    prepare: Callable[..., Any]
    pair: Pair
    kind: Literal["similarity", "distance"]
    limits: tuple[float, float]
    invariances: str
    symmetric: bool = True
    minimum: int = 2
    chance_pair: Pair | None = None

    @property
    def chance(self) -> Callable[..., Array] | None:
        """``chance(x, y, **options)`` gives the exact mean over permutations of the samples; None if not known."""
        if self.chance_pair is None:
            return None
        return partial(_chance, self)

    def matrix(self, xs: Sequence[Array], ys: Sequence[Array] | None = None, **options: Any) -> MeasureMatrix:
        """Values of the measure for every pair of layers; the statistics of each layer are computed once.

        Parameters
        ----------
        xs : sequence of arrays (n, p_i)
            Features of the layers of one network.
        ys : sequence of arrays (n, q_j), optional
            Features of the layers of the other network; ``xs`` when left out.
        **options
            Options of ``function``.

        Returns
        -------
        MeasureMatrix
            Arrays (len(xs), len(ys)) of float64. NaN in the rows and columns of constant layers.

        Raises
        ------
        TypeError, ValueError
            As ``function``; the message names the layer by its place. Also for an unknown option.
        """
        known = [p.name for p in signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for option in options:
            if option not in known:
                raise TypeError(
                    f"`{self.function.__name__}` has no option `{option}`"
                    + (f". Its options are: {', '.join(known)}." if known else ". It has no options.")
                )
        left, right = prepare_layers(xs, ys, partial(self.prepare, **options), minimum=self.minimum)
        values = all_pairs(left, right, self.pair, symmetric=self.symmetric)
        if self.chance_pair is None:
            return MeasureMatrix(values, None)
        return MeasureMatrix(values, all_pairs(left, right, self.chance_pair, symmetric=self.symmetric))


def _chance(measure: Measure, x: Array, y: Array, **options: Any) -> Array:
    _, x, y = check_pair(x, y, minimum=measure.minimum)
    assert measure.chance_pair is not None
    return measure.chance_pair(measure.prepare(x, **options), measure.prepare(y, **options))


def _prepare_uncentred(x: Array, *, kernel: Kernel | None = None) -> Array:
    return normalized_gram(x, kernel or Linear(), centring="none")


def _uncentred_pair(x: Array, y: Array) -> Array:
    return array_namespace(x).sum(x * y, axis=(-2, -1))


def _uncentred_chance(x: Array, y: Array) -> Array:
    """Exact mean over permutations of the samples. They map diagonal entries to diagonal entries, others to others."""
    xp = array_namespace(x)
    n = x.shape[-1]
    on = [xp.sum(xp.linalg.diagonal(z), axis=-1) for z in (x, y)]
    off = [xp.sum(z, axis=(-2, -1)) - d for z, d in zip((x, y), on, strict=True)]
    return on[0] * on[1] / n + off[0] * off[1] / (n * (n - 1))


def uncentred_alignment(x: Array, y: Array, *, kernel: Kernel | None = None) -> Array:
    """The cosine between the Gram matrices of two layers without centring.

    Parameters
    ----------
    x : array (..., n, p)
        Features, n >= 2. They are not centred: large means alone bring the value near 1.
    y : array (..., n, q)
        Features of the same samples.
    kernel : Kernel, optional
        Linear when left out.

    Returns
    -------
    array (...) of float64
        From 0 to 1 for positive semi-definite kernels. NaN if all features of a side are 0.

    Raises
    ------
    TypeError, ValueError
        As ``cka``.

    References
    ----------
    Cristianini et al., On Kernel-Target Alignment, NeurIPS 2001. c0 in T2 (docs/theory.md, section 7).

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 3))
    >>> bool(uncentred_alignment(x + 10, y + 10) > 0.95)
    True
    """
    _, x, y = check_pair(x, y)
    return _uncentred_pair(_prepare_uncentred(x, kernel=kernel), _prepare_uncentred(y, kernel=kernel))


_INF = float("inf")
_ROTATION = "shift, scale and rotation of either side"
_LINEAR = "any shift and invertible linear map of either side"

MEASURES: dict[str, Measure] = {
    "procrustes": Measure(
        shapes.procrustes_distance, shapes.prepare, shapes.distance, "distance", (0.0, 2**0.5), _ROTATION
    ),
    "angular": Measure(
        shapes.angular_distance, shapes.prepare, shapes.angle, "distance", (0.0, 1.5707963267948966), _ROTATION
    ),
    "nbs": Measure(
        shapes.normalized_bures_similarity, shapes.prepare, shapes.similarity, "similarity", (0.0, 1.0), _ROTATION
    ),
    "cca": Measure(
        canonical.mean_cca, subspaces.prepare, canonical.mean_correlation, "similarity", (0.0, 1.0), _LINEAR
    ),
    "cca_r2": Measure(
        canonical.cca_r2,
        subspaces.prepare,
        canonical.mean_squared_correlation,
        "similarity",
        (0.0, 1.0),
        _LINEAR,
        chance_pair=canonical.mean_squared_correlation_chance,
    ),
    "svcca": Measure(
        canonical.svcca,
        partial(subspaces.prepare, variance=0.99),
        canonical.mean_correlation,
        "similarity",
        (0.0, 1.0),
        _ROTATION,
    ),
    "pwcca": Measure(
        canonical.pwcca,
        subspaces.prepare,
        canonical.projection_weighted,
        "similarity",
        (0.0, 1.0),
        "shift, scale and order of the features of x; any shift and invertible linear map of y",
        symmetric=False,
    ),
    "linear_regression_r2": Measure(
        predictors.linear_regression_r2,
        subspaces.prepare,
        predictors.explained_variance,
        "similarity",
        (0.0, 1.0),
        "any shift and invertible linear map of x (rows); shift, scale and rotation of y (columns)",
        symmetric=False,
        chance_pair=predictors.explained_variance_chance,
    ),
    "gulp": Measure(
        predictors.gulp,
        partial(subspaces.prepare, regularization=1e-2),
        predictors.predictor_distance,
        "distance",
        (0.0, _INF),
        _ROTATION,
    ),
    "rsa": Measure(
        dissimilarities.rsa,
        dissimilarities.prepare,
        dissimilarities.correlation,
        "similarity",
        (-1.0, 1.0),
        "scale and shift of each sample over its features, and order of the features, of either side",
        minimum=3,
        chance_pair=dissimilarities.correlation_chance,
    ),
    "mutual_knn": Measure(
        neighbours.mutual_knn,
        neighbours.prepare,
        neighbours.shared_neighbours,
        "similarity",
        (0.0, 1.0),
        "scale of each sample, and rotation, of either side",
        chance_pair=neighbours.shared_neighbours_chance,
    ),
    "cknna": Measure(
        neighbours.cknna,
        neighbours.prepare,
        neighbours.neighbour_alignment,
        "similarity",
        (-_INF, _INF),
        "scale of each sample, and rotation, of either side",
        symmetric=False,
        minimum=4,
    ),
    "uncentred_alignment": Measure(
        uncentred_alignment,
        _prepare_uncentred,
        _uncentred_pair,
        "similarity",
        (0.0, 1.0),
        "scale and rotation of either side",
        chance_pair=_uncentred_chance,
    ),
    "mmd": Measure(
        layer_mmd.layer_mmd_squared,
        layer_mmd.prepare,
        layer_mmd.clouds_mmd_squared,
        "distance",
        (0.0, 2.0),
        _ROTATION,
    ),
}
"""All measures other than CKA by name: ``MEASURES["procrustes"].function(x, y)`` and ``.matrix(xs, ys)``."""
