"""Language models: CKA of hidden states between models of different width and depth, padding left out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...capture.pooling import pool
from .cka import FeatureCKALoss

__all__ = ["HiddenStateCKALoss", "match_depths"]


def match_depths(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer) of two stacks of different depth, evenly spaced and aligned at the end.

    Parameters
    ----------
    student, teacher : int
        Numbers of layers.

    Returns
    -------
    list of (int, int)
        One pair for each layer of the shallower stack; the last layers are paired.

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


class HiddenStateCKALoss(nn.Module):
    """The weighted mean over pairs of layers of 1 - CKA of hidden states; widths and depths may differ.

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
        For a negative weight, an unknown pooling or estimator.

    Examples
    --------
    >>> import torch
    >>> states = [torch.randn(4, 6, 8) for _ in range(3)]
    >>> loss = HiddenStateCKALoss()
    >>> round(abs(float(loss(states, [2 * s for s in states], torch.ones(4, 6)))), 5)
    0.0
    """

    def __init__(self, weight: float = 1.0, *, pooling: str = "all", estimator: str = "biased") -> None:
        super().__init__()
        if pooling not in ("all", "mean", "last", "cls"):
            raise ValueError(f'`pooling` must be "all", "mean", "last" or "cls", got {pooling!r}.')
        self.pooling = pooling
        self.features = FeatureCKALoss(weight, estimator=estimator)

    def forward(
        self,
        student_states: Sequence[Tensor],
        teacher_states: Sequence[Tensor],
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden states (B, T, d) of the same tokens.

        Parameters
        ----------
        student_states, teacher_states : sequence of Tensor (B, T, d)
            As Hugging Face models return them, without the embeddings; layers are paired by `match_depths`.
        attention_mask : Tensor (B, T), optional
            1 for real tokens.

        Returns
        -------
        Tensor
            A scalar, 0 for a perfect match.

        Raises
        ------
        ValueError
            If there are no states, or the two models saw other tokens.
        """
        pairs = match_depths(len(student_states), len(teacher_states))
        for i, j in pairs:
            if student_states[i].shape[:2] != teacher_states[j].shape[:2]:
                raise ValueError(
                    f"Student layer {i} holds tokens of shape {tuple(student_states[i].shape[:2])}, teacher layer {j} "
                    f"{tuple(teacher_states[j].shape[:2])}. Both models must see the same tokens."
                )
        student = [pool(student_states[i], self.pooling, attention_mask) for i, _ in pairs]
        teacher = [pool(teacher_states[j], self.pooling, attention_mask) for _, j in pairs]
        return self.features(student, teacher)
