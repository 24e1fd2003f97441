"""Models, features or signatures in, a SimilarityMatrix out."""

from .features import compare_features
from .history import SimilarityHistory, lightning_callback, trainer_callback
from .models import compare, compare_many
from .processes import Shard
from .signatures import Signature, compare_signatures, signature

__all__ = [
    "Shard",
    "Signature",
    "SimilarityHistory",
    "compare",
    "compare_features",
    "compare_many",
    "compare_signatures",
    "lightning_callback",
    "signature",
    "trainer_callback",
]
