"""CKA of the hidden states of language models of any width and depth, as a loss; padding is left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...capture.pooling import pool
from ...estimators.validation import check_estimator
from .checks import check_defined, feature_pairs
from .cka import FeatureCKALoss
from .contract import DistillationLoss, Outputs
from .deferred import raise_if
from .gather import gathered
from .tokens import check_real, cka_of_tokens, filled, real_tokens
from .weight_schedules import Weight

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
    weight : float or callable
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
    embeddings. `match_depths` pairs the layers. It also reads the ``mask``, (B, T), of student and teacher: a token is
    real if both say so; without a mask, all tokens are real. The term is "hidden_states", between 0 and the weight
    (biased).

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

    def __init__(self, weight: Weight = 1.0, *, pooling: str = "all", estimator: str = "biased") -> None:
        super().__init__()
        if pooling not in ("all", "mean", "last", "cls"):
            raise ValueError(f'`pooling` must be "all", "mean", "last" or "cls", got {pooling!r}.')
        self.pooling = pooling
        self.features = FeatureCKALoss(weight, estimator=estimator)

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "hidden_states"; none at weight 0."""
        if not student.features or not teacher.features:
            raise ValueError(
                f"HiddenStateCKALoss compares hidden states, but the student has {len(student.features)} and the "
                f"teacher {len(teacher.features)}. Pass Outputs(features=hidden_states, mask=attention_mask)."
            )
        layers = match_depths(len(student.features), len(teacher.features))
        pairs = feature_pairs(
            [student.features[i] for i, _ in layers], [teacher.features[j] for _, j in layers], type(self).__name__
        )
        masks = [mask for mask in (student.mask, teacher.mask) if mask is not None]
        for (i, j), (x, y) in zip(layers, pairs, strict=True):
            _check_tokens(i, j, x, y, masks)
        if not masks and target is not None:
            _refuse_mask_as_target(target, pairs[0][0])
        if not self.features.weight:
            return {}
        x = pairs[0][0]
        real = real_tokens(x, x, student, teacher)
        if real is not None and self.pooling == "all":
            values = [self._value(x, y, real, layers[number]) for number, (x, y) in enumerate(pairs)]
            term = (1 - torch.stack(values).mean()).to(x.dtype)
            return {"hidden_states": self.features.weighted("weight", term)}
        if real is not None:
            check_real(real, "batch")
        pooled = [(pool(x, self.pooling, real), pool(y, self.pooling, real)) for x, y in pairs]
        terms = self.features.terms([x for x, _ in pooled], [y for _, y in pooled])
        return {"hidden_states": terms["features"]}

    def _value(self, x: Tensor, y: Tensor, real: Tensor, layers: tuple[int, int]) -> Tensor:
        """CKA over the real tokens of all samples, of all processes."""
        rows = [(x.flatten(2).flatten(0, 1), y.flatten(2).flatten(0, 1)), (real.flatten(), real.flatten())]
        (x, y), (real, _) = gathered(rows, self.features.gather)
        estimator = self.features.estimator
        count, needed = real.sum(), check_estimator(estimator)
        raise_if(
            count < needed,
            lambda: count.view(1),
            lambda facts: ValueError(
                f"The batch has {facts[0]} real tokens, but the {estimator} CKA needs at least {needed}. The mask must "
                "be True or 1 for real tokens."
            ),
        )
        value = cka_of_tokens(x, y, real, estimator)
        what = f"hidden states of layers {layers[0]} and {layers[1]}"
        check_defined(value, filled(x, real), filled(y, real), what)
        return value

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"pooling={self.pooling!r}"


def _check_tokens(i: int, j: int, x: Tensor, y: Tensor, masks: Sequence[Tensor]) -> None:
    """Raise ValueError unless layers x and y hold the same tokens (B, T, ...) and the masks fit them."""
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
    for mask in masks:
        if mask.shape != x.shape[:2]:
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)}, but layer {i} holds tokens {tuple(x.shape[:2])}."
            )


def _refuse_mask_as_target(target: Tensor, states: Tensor) -> None:
    """Raise TypeError if the target is 0 or 1 for each token: version 0.1 took the mask as third argument."""
    if target.shape != states.shape[:2]:
        return
    raise_if(
        ((target == 0) | (target == 1)).all(),
        lambda: target.new_zeros(0),
        lambda _: TypeError(
            "The third argument of HiddenStateCKALoss is the target, but it looks like an attention mask. Call "
            "loss(Outputs(features=student_states, mask=attention_mask), teacher_states)."
        ),
    )
