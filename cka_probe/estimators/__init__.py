"""Arrays in, numbers out: numpy, torch and CuPy alike."""

from .alignment import chance_level, cka, cka_from_grams, participation_ratio
from .corridor import (
    Corridor,
    CorridorCurves,
    alignment_corridor,
    alignment_corridor_from_covariances,
    corridor_curves,
)
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
    "cka_with_error",
    "cka_matrix_with_error",
    "sample_influence",
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
    "cka_mmd_bounds",
    "CKAMMDBounds",
    "Statement",
    "alignment_corridor",
    "alignment_corridor_from_covariances",
    "corridor_curves",
    "Corridor",
    "CorridorCurves",
]
