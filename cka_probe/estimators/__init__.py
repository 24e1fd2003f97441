"""Arrays in, numbers out: numpy, torch and CuPy alike."""

from .alignment import chance_level, cka, cka_from_grams, participation_ratio
from .hsic import center_gram, hsic, hsic_from_grams, u_center_gram
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
]
