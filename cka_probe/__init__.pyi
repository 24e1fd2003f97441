from .callbacks import SimilarityHistory, lightning_callback, trainer_callback
from .capture.hooks import CaptureError, Probe
from .comparison import compare, compare_many
from .estimators.alignment import chance_level, cka, cka_from_grams
from .estimators.corridor import alignment_corridor
from .estimators.hsic import hsic, hsic_from_grams
from .estimators.inference import cka_matrix_with_error, cka_with_error
from .estimators.kernels import RBF, Cosine, Laplacian, Linear, Polynomial
from .estimators.measures import MEASURES
from .estimators.minibatch import MinibatchCKA, cka_matrix
from .estimators.mmd import energy_distance, mmd_squared, mmd_test
from .estimators.theory import cka_mmd_bounds
from .extraction import extract
from .feature_comparison import compare_features
from .parallel import Shard
from .plotting.heatmap import plot_heatmap
from .signatures import Signature, compare_signatures, signature
from .similarity import SimilarityMatrix

__version__: str

__all__ = [
    "MEASURES",
    "RBF",
    "CaptureError",
    "Cosine",
    "Laplacian",
    "Linear",
    "MinibatchCKA",
    "Polynomial",
    "Probe",
    "Shard",
    "Signature",
    "SimilarityHistory",
    "SimilarityMatrix",
    "alignment_corridor",
    "chance_level",
    "cka",
    "cka_from_grams",
    "cka_matrix",
    "cka_matrix_with_error",
    "cka_mmd_bounds",
    "cka_with_error",
    "compare",
    "compare_features",
    "compare_many",
    "compare_signatures",
    "energy_distance",
    "extract",
    "hsic",
    "hsic_from_grams",
    "lightning_callback",
    "mmd_squared",
    "mmd_test",
    "plot_heatmap",
    "signature",
    "trainer_callback",
]
