"""CKA of the hidden states of language models of any width and depth, as a loss; padding is left out."""

from __future__ import annotations

from torch import Tensor

from ...capture.pooling import pool
from .checks import feature_pairs
from .cka import FeatureCKALoss
from .contract import DistillationLoss, Outputs

__all__ = ["HiddenStateCKALoss", "match_depths"]


def match_depths(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer) of two stacks of layers, evenly spaced; the last layers are a pair.

    Parameters
    ----------
    student, teacher : int
        Numbers of layers.

    Returns
    -------
    list of (int, int)
        One pair for each layer of the shallower stack.

    Raises
    ------
    ValueError
        If a stack is empty.

    Examples
    --------
    >>> match_depths(2, 6)
    [(0, 2), (1, 5)]
    """
    if student < 1 or teacher < 1:
        raise ValueError(f"Both stacks need at least one layer, got {student} and {teacher}.")
    pairs = min(student, teacher)
    return [((i + 1) * student // pairs - 1, (i + 1) * teacher // pairs - 1) for i in range(pairs)]


class HiddenStateCKALoss(DistillationLoss):
    """The weighted mean over pairs of layers of 1 - CKA of hidden states. Widths and depths may differ.

    Parameters
    ----------
    weight : float
        Multiplies the mean over pairs.
    pooling : "all", "mean", "last" or "cls"
        "all": every real token is a sample. The others make one sample of each sequence.
    estimator : "biased" or "unbiased"
        As in `FeatureCKALoss`.

    Raises
    ------
    ValueError
        If the weight is negative, or the pooling or estimator unknown.

    Notes
    -----
    Reads features: hidden states (B, T, d) of the same tokens, as Hugging Face models return them, without the
    embeddings. `match_depths` pairs the layers. It also reads ``mask``, (B, T), of the student, or else of the teacher;
    without one, all tokens are real. The term is "hidden_states", between 0 and the weight (biased).

    Examples
    --------
    >>> import torch
    >>> states = [torch.randn(4, 6, 8) for _ in range(3)]
    >>> mask = torch.ones(4, 6)
    >>> loss = HiddenStateCKALoss()
    >>> value = loss(Outputs(features=tuple(states), mask=mask), [2 * s for s in states])
    >>> round(abs(float(value)), 5)
    0.0
    """

    reads = ("features",)

    def __init__(self, weight: float = 1.0, *, pooling: str = "all", estimator: str = "biased") -> None:
        super().__init__()
        if pooling not in ("all", "mean", "last", "cls"):
            raise ValueError(f'`pooling` must be "all", "mean", "last" or "cls", got {pooling!r}.')
        self.pooling = pooling
        self.features = FeatureCKALoss(weight, estimator=estimator)

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "hidden_states"; none at weight 0."""
        mask = teacher.mask if student.mask is None else student.mask
        if not student.features or not teacher.features:
            raise ValueError(
                f"HiddenStateCKALoss compares hidden states, but the student has {len(student.features)} and the "
                f"teacher {len(teacher.features)}. Pass Outputs(features=hidden_states, mask=attention_mask)."
            )
        layers = match_depths(len(student.features), len(teacher.features))
        pairs = feature_pairs(
            [student.features[i] for i, _ in layers], [teacher.features[j] for _, j in layers], type(self).__name__
        )
        for (i, j), (x, y) in zip(layers, pairs, strict=True):
            _check_tokens(i, j, x, y, mask)
        if mask is None and target is not None:
            _refuse_mask_as_target(target, pairs[0][0])
        pooled = [(pool(x, self.pooling, mask), pool(y, self.pooling, mask)) for x, y in pairs]
        terms = self.features.terms([x for x, _ in pooled], [y for _, y in pooled])
        return {"hidden_states": terms["features"]} if terms else {}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"pooling={self.pooling!r}"


def _check_tokens(i: int, j: int, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless layers x and y hold the same tokens (B, T, ...) and the mask fits them."""
    for layer, states, owner in ((i, x, "student"), (j, y, "teacher")):
        if states.ndim < 3:
            raise ValueError(
                f"HiddenStateCKALoss compares tokens, but the {owner}'s layer {layer} has shape {tuple(states.shape)} "
                "instead of (B, T, d)."
            )
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"Student layer {i} holds tokens of shape {tuple(x.shape[:2])}, teacher layer {j} {tuple(y.shape[:2])}. "
            "Both models must see the same tokens."
        )
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(f"The mask has shape {tuple(mask.shape)}, but layer {i} holds tokens {tuple(x.shape[:2])}.")


def _refuse_mask_as_target(target: Tensor, states: Tensor) -> None:
    """Raise TypeError if the target is 0 or 1 for each token: version 0.1 took the mask as third argument."""
    if target.shape == states.shape[:2] and bool(((target == 0) | (target == 1)).all()):
        raise TypeError(
            "The third argument of HiddenStateCKALoss is the target, but it looks like an attention mask. Call "
            "loss(Outputs(features=student_states, mask=attention_mask), teacher_states)."
        )
