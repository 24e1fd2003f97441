"""Similarity measures of arrays: numpy, torch and CuPy arrays in, numbers out."""

from .alignment import chance_level, cka, cka_from_grams, participation_ratio
from .any_measure import calibrate, measure_matrix_with_error
from .calibration import Calibration
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
from .layer_matrix import cka_matrix
from .measures.aligned import aligned_cosine, partial_whitening_distance, procrustes_size_and_shape
from .measures.canonical import canonical_correlations, cca_r2, mean_cca, pwcca, svcca
from .measures.catalogue import MEASURES
from .measures.centred_distances import distance_correlation
from .measures.dissimilarities import rsa
from .measures.held_out import held_out_cca, held_out_regression_r2
from .measures.layer_mmd import layer_mmd_squared, mmd_matrix
from .measures.matching import hard_correlation, permutation_procrustes, soft_correlation, soft_matching
from .measures.measure import Measure, MeasureMatrix
from .measures.neighbour_orders import edit_distance_knn, lcs_knn, rank_similarity
from .measures.neighbour_sets import cycle_knn, jaccard, second_order_cosine
from .measures.neighbours import cknna, mutual_knn
from .measures.noise_ceiling import CorrectedRSA, rsa_corrected
from .measures.predictors import gulp, linear_regression_r2
from .measures.shapes import angular_distance, normalized_bures_similarity, procrustes_distance
from .measures.topology import rtd
from .measures.uncentred import uncentred_alignment
from .minibatch import MinibatchCKA
from .mmd import Distance, MMDTest, energy_distance, mmd_squared, mmd_test
from .permutation import PermutationTest, cka_matrix_test, cka_test
from .theory import CKAMMDBounds, Statement, cka_mmd_bounds

__all__ = [
    "MEASURES",
    "RBF",
    "CKAMMDBounds",
    "Calibration",
    "CorrectedRSA",
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
    "aligned_cosine",
    "alignment_corridor",
    "alignment_corridor_from_covariances",
    "angular_distance",
    "blocked_cka",
    "calibrate",
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
    "cycle_knn",
    "distance_correlation",
    "edit_distance_knn",
    "energy_distance",
    "gulp",
    "hard_correlation",
    "held_out_cca",
    "held_out_regression_r2",
    "hsic",
    "hsic_from_grams",
    "jaccard",
    "kernel_from_name",
    "layer_mmd_squared",
    "lcs_knn",
    "linear_regression_r2",
    "mean_cca",
    "measure_matrix_with_error",
    "median_distance",
    "mmd_matrix",
    "mmd_squared",
    "mmd_test",
    "mutual_knn",
    "normalized_bures_similarity",
    "partial_whitening_distance",
    "participation_ratio",
    "permutation_procrustes",
    "procrustes_distance",
    "procrustes_size_and_shape",
    "pwcca",
    "rank_similarity",
    "rsa",
    "rsa_corrected",
    "rtd",
    "sample_influence",
    "second_order_cosine",
    "soft_correlation",
    "soft_matching",
    "squared_distances",
    "svcca",
    "u_center_gram",
    "uncentred_alignment",
]
