from .capture.hooks import CaptureError, Probe
from .comparison import compare
from .estimators.alignment import chance_level, cka, cka_from_grams
from .estimators.hsic import hsic
from .estimators.kernels import RBF, Cosine, Laplacian, Linear, Polynomial
from .estimators.minibatch import MinibatchCKA, cka_matrix
from .plotting.heatmap import plot_heatmap
from .similarity import SimilarityMatrix

__version__: str

__all__ = [
    "RBF",
    "CaptureError",
    "Cosine",
    "Laplacian",
    "Linear",
    "MinibatchCKA",
    "Polynomial",
    "Probe",
    "SimilarityMatrix",
    "chance_level",
    "cka",
    "cka_from_grams",
    "cka_matrix",
    "compare",
    "hsic",
    "plot_heatmap",
]
