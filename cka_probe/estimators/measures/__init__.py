"""Measures of representational similarity other than CKA, and the catalogue that lists them by name."""

from .canonical import canonical_correlations, cca_r2, mean_cca, pwcca, svcca
from .catalogue import MEASURES, Measure, MeasureMatrix, uncentred_alignment
from .dissimilarities import rsa
from .layer_mmd import layer_mmd_squared, mmd_matrix
from .neighbours import cknna, mutual_knn
from .predictors import gulp, linear_regression_r2
from .shapes import angular_distance, normalized_bures_similarity, procrustes_distance

__all__ = [
    "MEASURES",
    "Measure",
    "MeasureMatrix",
    "angular_distance",
    "canonical_correlations",
    "cca_r2",
    "cknna",
    "gulp",
    "layer_mmd_squared",
    "linear_regression_r2",
    "mean_cca",
    "mmd_matrix",
    "mutual_knn",
    "normalized_bures_similarity",
    "procrustes_distance",
    "pwcca",
    "rsa",
    "svcca",
    "uncentred_alignment",
]
