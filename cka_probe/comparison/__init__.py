"""Models, features or signatures in, a SimilarityMatrix out."""

from .features import compare_features
from .history import SimilarityHistory, lightning_callback, trainer_callback
from .models import compare, compare_many
from .processes import Shard
from .signature_files import Signature, SketchedSignature, load_signature
from .signature_pairs import compare_signatures
from .signature_vectors import Sketch
from .signatures import signature

__all__ = [
    "Shard",
    "Signature",
    "SimilarityHistory",
    "Sketch",
    "SketchedSignature",
    "compare",
    "compare_features",
    "compare_many",
    "compare_signatures",
    "lightning_callback",
    "load_signature",
    "signature",
    "trainer_callback",
]
