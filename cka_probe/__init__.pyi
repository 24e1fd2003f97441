from . import distill, estimators, plotting
from .atlas.atlas import Atlas
from .atlas.jobs import signatures
from .capture.extraction import extract
from .capture.hooks import CaptureError, Probe
from .comparison.features import compare_features
from .comparison.history import SimilarityHistory, lightning_callback, trainer_callback
from .comparison.models import compare, compare_many
from .comparison.processes import Shard
from .comparison.signature_files import Signature, SketchedSignature, load_signature
from .comparison.signature_pairs import compare_signatures
from .comparison.signature_vectors import Sketch
from .comparison.signatures import signature
from .estimators.alignment import chance_level, cka, cka_from_grams
from .estimators.corridor import alignment_corridor
from .estimators.hsic import hsic, hsic_from_grams
from .estimators.inference import cka_matrix_with_error, cka_with_error
from .estimators.kernels import RBF, Cosine, Laplacian, Linear, Polynomial
from .estimators.layer_matrix import cka_matrix
from .estimators.measures.catalogue import MEASURES
from .estimators.minibatch import MinibatchCKA
from .estimators.mmd import energy_distance, mmd_squared, mmd_test
from .estimators.permanova import permanova
from .estimators.theory import cka_mmd_bounds
from .plotting.heatmap import plot_heatmap
from .similarity.matrix import SimilarityMatrix

__version__: str

__all__ = [
    "MEASURES",
    "RBF",
    "Atlas",
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
    "Sketch",
    "SketchedSignature",
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
    "distill",
    "energy_distance",
    "estimators",
    "extract",
    "hsic",
    "hsic_from_grams",
    "lightning_callback",
    "load_signature",
    "mmd_squared",
    "mmd_test",
    "permanova",
    "plot_heatmap",
    "plotting",
    "signature",
    "signatures",
    "trainer_callback",
]
