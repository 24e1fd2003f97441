"""All measures by name, each with its kind, its range, its invariances, and its matrix over lists of layers."""

from __future__ import annotations

from functools import partial

from . import (
    aligned,
    canonical,
    centred_distances,
    dissimilarities,
    held_out,
    layer_mmd,
    matching,
    neighbour_orders,
    neighbour_sets,
    neighbours,
    predictors,
    shapes,
    subspaces,
    topology,
    uncentred,
)
from .measure import Measure

__all__ = ["MEASURES"]

_INF = float("inf")
_ROTATION = "shift, scale and rotation of either side"
_LINEAR = "any shift and invertible linear map of either side"
_DIRECTIONS = "scale of each sample, and rotation, of either side"
_ORDER = "shift, scale and order of the features of either side"
_COLUMNS = "shift and positive scale of each feature, and order of the features, of either side"

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
        _DIRECTIONS,
        chance_pair=neighbours.shared_neighbours_chance,
    ),
    "cknna": Measure(
        neighbours.cknna,
        neighbours.prepare,
        neighbours.neighbour_alignment,
        "similarity",
        (-_INF, _INF),
        _DIRECTIONS,
        symmetric=False,
        minimum=4,
    ),
    "uncentred_alignment": Measure(
        uncentred.uncentred_alignment,
        uncentred.prepare,
        uncentred.cosine,
        "similarity",
        (0.0, 1.0),
        "scale and rotation of either side",
        chance_pair=uncentred.chance,
    ),
    "mmd": Measure(
        layer_mmd.layer_mmd_squared,
        layer_mmd.prepare,
        layer_mmd.clouds_mmd_squared,
        "distance",
        (0.0, 2.0),
        _ROTATION,
    ),
    "distance_correlation": Measure(
        centred_distances.distance_correlation,
        centred_distances.prepare,
        centred_distances.correlation,
        "similarity",
        (0.0, 1.0),
        _ROTATION,
    ),
    "jaccard": Measure(
        neighbour_sets.jaccard,
        neighbours.prepare,
        neighbour_sets.union_share,
        "similarity",
        (0.0, 1.0),
        _DIRECTIONS,
        chance_pair=neighbour_sets.union_share_chance,
    ),
    "second_order_cosine": Measure(
        neighbour_sets.second_order_cosine,
        partial(neighbours.prepare, form="paper"),
        neighbour_sets.second_order,
        "similarity",
        (-1.0, 1.0),
        _DIRECTIONS,
    ),
    "rank_similarity": Measure(
        neighbour_orders.rank_similarity,
        neighbours.prepare,
        neighbour_orders.rank_agreement,
        "similarity",
        (0.0, 1.0),
        _DIRECTIONS,
        chance_pair=neighbour_orders.rank_agreement_chance,
    ),
    "edit_distance_knn": Measure(
        neighbour_orders.edit_distance_knn,
        neighbours.prepare,
        neighbour_orders.edit_similarity,
        "similarity",
        (0.0, 1.0),
        _DIRECTIONS,
    ),
    "lcs_knn": Measure(
        neighbour_orders.lcs_knn,
        neighbours.prepare,
        neighbour_orders.common_subsequence,
        "similarity",
        (0.0, 1.0),
        _DIRECTIONS,
    ),
    "cycle_knn": Measure(
        neighbour_sets.cycle_knn,
        neighbours.prepare,
        neighbour_sets.cycles,
        "similarity",
        (0.0, 1.0),
        _DIRECTIONS,
        symmetric=False,
        chance_pair=neighbour_sets.cycles_chance,
    ),
    "soft_correlation": Measure(
        matching.soft_correlation,
        matching.prepare_correlations,
        matching.nearest_correlation,
        "similarity",
        (-1.0, 1.0),
        _COLUMNS,
    ),
    "hard_correlation": Measure(
        matching.hard_correlation,
        matching.prepare_correlations,
        matching.matched_correlation,
        "similarity",
        (-1.0, 1.0),
        _COLUMNS,
    ),
    "soft_matching": Measure(
        matching.soft_matching,
        matching.prepare_columns,
        matching.transport_distance,
        "distance",
        (0.0, 2.0),
        _ORDER,
    ),
    "permutation_procrustes": Measure(
        matching.permutation_procrustes,
        matching.prepare,
        matching.permutation_distance,
        "distance",
        (0.0, 2.0),
        _ORDER,
    ),
    "procrustes_size_and_shape": Measure(
        aligned.procrustes_size_and_shape,
        aligned.prepare_size,
        shapes.distance,
        "distance",
        (0.0, _INF),
        "shift and rotation of either side",
    ),
    "partial_whitening": Measure(
        aligned.partial_whitening_distance,
        aligned.prepare_whitened,
        shapes.angle,
        "distance",
        (0.0, 1.5707963267948966),
        "shift and rotation of either side",
    ),
    "aligned_cosine": Measure(
        aligned.aligned_cosine,
        aligned.prepare_uncentred,
        aligned.mean_cosine,
        "similarity",
        (-1.0, 1.0),
        "scale and rotation of either side",
    ),
    "held_out_regression_r2": Measure(
        held_out.held_out_regression_r2,
        held_out.prepare,
        held_out.held_out_r2,
        "similarity",
        (-_INF, 1.0),
        "any shift and invertible linear map of x (rows); shift, scale and rotation of y (columns)",
        symmetric=False,
        minimum=6,
    ),
    "held_out_cca": Measure(
        held_out.held_out_cca,
        held_out.prepare,
        held_out.held_out_correlation,
        "similarity",
        (-1.0, 1.0),
        _LINEAR,
        minimum=6,
    ),
    "rtd": Measure(
        topology.rtd,
        topology.prepare,
        topology.divergence,
        "distance",
        (0.0, _INF),
        _ROTATION,
        minimum=3,
    ),
}
"""All measures other than CKA by name: ``MEASURES["procrustes"].function(x, y)`` and ``.matrix(xs, ys)``."""
