"""Similarity measures of arrays: numpy, torch and CuPy arrays in, numbers out."""

from .alignment import chance_level, cka, cka_from_grams, participation_ratio
from .centring import center_gram, u_center_gram
from .corridor import Corridor, CorridorCurves, alignment_corridor, alignment_corridor_from_covariances, corridor_curves
from .dataset.blocks import blocked_cka
from .dataset.moments import MomentCKA
from .dataset.routes import Route, choose_route
from .dataset.sketch import SketchCKA
from .distances import median_distance, squared_distances
from .double_debiasing import cka_double_debiased
from .hsic import hsic, hsic_from_grams
from .inference import Estimate, OutlierWarning, cka_matrix_with_error, cka_with_error, sample_influence
from .kernels import RBF, Cosine, Kernel, Laplacian, Linear, Polynomial, center_features, kernel_from_name
from .measures.canonical import canonical_correlations, cca_r2, mean_cca, pwcca, svcca
from .measures.catalogue import MEASURES, Measure, MeasureMatrix, uncentred_alignment
from .measures.dissimilarities import rsa
from .measures.layer_mmd import layer_mmd_squared, mmd_matrix
from .measures.neighbours import cknna, mutual_knn
from .measures.predictors import gulp, linear_regression_r2
from .measures.shapes import angular_distance, normalized_bures_similarity, procrustes_distance
from .minibatch import MinibatchCKA, cka_matrix
from .mmd import Distance, MMDTest, energy_distance, mmd_squared, mmd_test
from .permutation import PermutationTest, cka_matrix_test, cka_test
from .theory import CKAMMDBounds, Statement, cka_mmd_bounds

__all__ = [
    "MEASURES",
    "RBF",
    "CKAMMDBounds",
    "Corridor",
    "CorridorCurves",
    "Cosine",
    "Distance",
    "Estimate",
    "Kernel",
    "Laplacian",
    "Linear",
    "MMDTest",
    "Measure",
    "MeasureMatrix",
    "MinibatchCKA",
    "MomentCKA",
    "OutlierWarning",
    "PermutationTest",
    "Polynomial",
    "Route",
    "SketchCKA",
    "Statement",
    "alignment_corridor",
    "alignment_corridor_from_covariances",
    "angular_distance",
    "blocked_cka",
    "canonical_correlations",
    "cca_r2",
    "center_features",
    "center_gram",
    "chance_level",
    "choose_route",
    "cka",
    "cka_double_debiased",
    "cka_from_grams",
    "cka_matrix",
    "cka_matrix_test",
    "cka_matrix_with_error",
    "cka_mmd_bounds",
    "cka_test",
    "cka_with_error",
    "cknna",
    "corridor_curves",
    "energy_distance",
    "gulp",
    "hsic",
    "hsic_from_grams",
    "kernel_from_name",
    "layer_mmd_squared",
    "linear_regression_r2",
    "mean_cca",
    "median_distance",
    "mmd_matrix",
    "mmd_squared",
    "mmd_test",
    "mutual_knn",
    "normalized_bures_similarity",
    "participation_ratio",
    "procrustes_distance",
    "pwcca",
    "rsa",
    "sample_influence",
    "squared_distances",
    "svcca",
    "u_center_gram",
    "uncentred_alignment",
]
