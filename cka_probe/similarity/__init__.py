"""The result of a comparison: values with names, errors, p-values and notes."""

from .matrix import SimilarityMatrix

__all__ = ["SimilarityMatrix"]
