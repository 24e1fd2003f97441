"""The signs of the logits' axes, which the two logit terms of RCKA leave open, as a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_defined, logit_pair
from .contract import DistillationLoss, Outputs
from .gather import gathered
from .weight_schedules import Weight

__all__ = ["SignLoss"]


class SignLoss(DistillationLoss):
    """1 - cosine of the logits of student and teacher, as one long vector each.

    It is for use beside `LogitCKALoss` or `RCKALoss`, whose two logit terms are 0 for every choice of signs of the
    teacher's axes; this term is 0 for the teacher's own signs alone. It is not in the paper.

    Parameters
    ----------
    weight : float or callable
        Multiplies the loss. With the weight of the intra and inter terms it is as large as they are.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If the weight is negative.

    Notes
    -----
    Reads logits (B, P) of the same samples and classes, at least two of both. Their means over samples and over classes
    are subtracted first, so that the loss ignores a bias of a class, what softmax ignores, and the scale. The term is
    "signs", between 0 and twice the weight; there is none at weight 0. Logits without a spread are a ValueError.

    With the eigenvalues d of the teacher's Z'Z, a student with the signs s has the loss 1 - sum(s d) / sum(d).

    References
    ----------
    docs/theory.md, T7; measured in docs/distill.md, "When RCKA helps".

    Examples
    --------
    >>> import torch
    >>> from cka_probe.distill.losses import RCKALoss, ramp
    >>> loss = ramp(1, until=0.5) * (RCKALoss(15, 15, 15) + SignLoss(15))
    >>> logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    >>> [round(abs(float(SignLoss()(z, logits))), 5) for z in (2 * logits + 1, -logits)]
    [0.0, 2.0]
    """

    reads = ("logits",)

    def __init__(self, weight: Weight = 1.0, *, gather: bool = True) -> None:
        super().__init__()
        self.weight = self.checked_weight("weight", weight)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "signs"; none at weight 0."""
        if not self.weight:
            return {}
        x, y = gathered([logit_pair(student.logits, teacher.logits, type(self).__name__)], self.gather)[0]
        if min(x.shape) < 2:
            raise ValueError(
                f"SignLoss needs at least 2 samples and 2 classes, got logits of shape {tuple(x.shape)}. Use larger "
                "batches (drop_last=True leaves out a small last one), or leave this term out."
            )
        cosine = (_unit(x) * _unit(y)).sum()
        check_defined(cosine, x, y, "logits", "cosine")
        return {"signs": self.weighted("weight", 1 - cosine)}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, gather={self.gather}"


def _unit(z: Tensor) -> Tensor:
    """Logits without their means over samples and classes, with Frobenius norm 1; NaN if nothing but rounding is left.

    Dividing by the largest entry first keeps the squares in range.
    """
    largest = z.detach().abs().amax()
    z = z / torch.where(largest > 0, largest, torch.ones_like(largest))
    z = z - z.mean(0) - z.mean(1, keepdim=True) + z.mean()
    squares = z.square().sum()
    rounding = z.numel() * (8 * torch.finfo(z.dtype).eps) ** 2
    return z / torch.where(squares > rounding, squares, torch.full_like(squares, torch.nan)).sqrt()
