"""Measures of representational similarity other than CKA, and the catalogue that lists them by name."""

from .aligned import aligned_cosine, partial_whitening_distance, procrustes_size_and_shape
from .canonical import canonical_correlations, cca_r2, mean_cca, pwcca, svcca
from .catalogue import MEASURES
from .centred_distances import distance_correlation
from .dissimilarities import rsa
from .held_out import held_out_cca, held_out_regression_r2
from .layer_mmd import layer_mmd_squared, mmd_matrix
from .matching import hard_correlation, permutation_procrustes, soft_correlation, soft_matching
from .measure import Measure, MeasureMatrix
from .neighbour_orders import edit_distance_knn, lcs_knn, rank_similarity
from .neighbour_sets import cycle_knn, jaccard, second_order_cosine
from .neighbours import cknna, mutual_knn
from .noise_ceiling import CorrectedRSA, rsa_corrected
from .predictors import gulp, linear_regression_r2
from .shapes import angular_distance, normalized_bures_similarity, procrustes_distance
from .topology import rtd
from .uncentred import uncentred_alignment

__all__ = [
    "MEASURES",
    "CorrectedRSA",
    "Measure",
    "MeasureMatrix",
    "aligned_cosine",
    "angular_distance",
    "canonical_correlations",
    "cca_r2",
    "cknna",
    "cycle_knn",
    "distance_correlation",
    "edit_distance_knn",
    "gulp",
    "hard_correlation",
    "held_out_cca",
    "held_out_regression_r2",
    "jaccard",
    "layer_mmd_squared",
    "lcs_knn",
    "linear_regression_r2",
    "mean_cca",
    "mmd_matrix",
    "mutual_knn",
    "normalized_bures_similarity",
    "partial_whitening_distance",
    "permutation_procrustes",
    "procrustes_distance",
    "procrustes_size_and_shape",
    "pwcca",
    "rank_similarity",
    "rsa",
    "rsa_corrected",
    "rtd",
    "second_order_cosine",
    "soft_correlation",
    "soft_matching",
    "svcca",
    "uncentred_alignment",
]
