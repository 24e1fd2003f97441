"""Result of a comparison: values with layer names, standard errors, p-values and notes."""

from .matrix import SimilarityMatrix

__all__ = ["SimilarityMatrix"]
