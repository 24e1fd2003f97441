"""Arrays in, numbers out: numpy, torch and CuPy alike."""

from .alignment import chance_level, cka, cka_from_grams, participation_ratio
from .corridor import Corridor, CorridorCurves, alignment_corridor, alignment_corridor_from_covariances, corridor_curves
from .dataset.blocks import blocked_cka
from .dataset.moments import MomentCKA
from .dataset.routes import Route, choose_route
from .dataset.sketch import SketchCKA
from .double_debiasing import cka_double_debiased
from .hsic import center_gram, hsic, hsic_from_grams, u_center_gram
from .inference import Estimate, OutlierWarning, cka_matrix_with_error, cka_with_error, sample_influence
from .kernels import (
    RBF,
    Cosine,
    Kernel,
    Laplacian,
    Linear,
    Polynomial,
    center_features,
    kernel_from_name,
    median_distance,
    squared_distances,
)
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
    "Kernel",
    "Linear",
    "RBF",
    "Laplacian",
    "Polynomial",
    "Cosine",
    "kernel_from_name",
    "median_distance",
    "squared_distances",
    "center_features",
    "center_gram",
    "u_center_gram",
    "hsic",
    "hsic_from_grams",
    "cka",
    "cka_from_grams",
    "cka_matrix",
    "chance_level",
    "participation_ratio",
    "MinibatchCKA",
    "MomentCKA",
    "blocked_cka",
    "SketchCKA",
    "choose_route",
    "Route",
    "cka_with_error",
    "cka_matrix_with_error",
    "sample_influence",
    "cka_double_debiased",
    "Estimate",
    "OutlierWarning",
    "cka_test",
    "cka_matrix_test",
    "PermutationTest",
    "mmd_squared",
    "mmd_test",
    "MMDTest",
    "energy_distance",
    "Distance",
    "layer_mmd_squared",
    "mmd_matrix",
    "MEASURES",
    "Measure",
    "MeasureMatrix",
    "procrustes_distance",
    "angular_distance",
    "normalized_bures_similarity",
    "canonical_correlations",
    "mean_cca",
    "cca_r2",
    "svcca",
    "pwcca",
    "linear_regression_r2",
    "gulp",
    "rsa",
    "mutual_knn",
    "cknna",
    "uncentred_alignment",
    "cka_mmd_bounds",
    "CKAMMDBounds",
    "Statement",
    "alignment_corridor",
    "alignment_corridor_from_covariances",
    "corridor_curves",
    "Corridor",
    "CorridorCurves",
]
