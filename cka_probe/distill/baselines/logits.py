"""Baselines that compare logits: KD, DKD, DIST."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..losses.checks import check_target, logit_pair, positive, unit_rows
from ..losses.contract import DistillationLoss, Outputs
from ..losses.gather import gathered
from ..losses.tokens import check_real, real_tokens
from ..losses.weight_schedules import Weight

__all__ = ["DISTLoss", "DKDLoss", "KDLoss", "correlation", "softened_divergence"]


class KDLoss(DistillationLoss):
    """KD: KL(teacher || student) of softened class probabilities, mean over samples, times temperature squared.

    Logits of tokens, as language models have them, count token by token: the mean is over the real tokens of the batch.

    Parameters
    ----------
    temperature : float
        Divides the logits.
    weight : float or callable
        Multiplies the loss. The usual baseline has 0.9, and 0.1 for cross-entropy (``distill(..., ce_weight=0.1)``).

    Raises
    ------
    ValueError
        If the temperature is not positive or the weight negative.

    Notes
    -----
    Reads logits (B, classes) or (B, T, classes); a mask (B, T) says which tokens are real. The term is "kd".

    References
    ----------
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.

    Examples
    --------
    >>> import torch
    >>> logits = torch.randn(8, 5)
    >>> float(KDLoss()(logits + 3, logits)) < 1e-5
    True
    """

    reads = ("logits",)

    def __init__(self, temperature: float = 4.0, weight: Weight = 0.9) -> None:
        super().__init__()
        self.temperature, self.weight = positive("temperature", temperature), self.checked_weight("weight", weight)

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "kd"."""
        x, y = logit_pair(student.logits, teacher.logits, type(self).__name__, tokens=True)
        real = _real(x, y, student, teacher)
        if real is None:
            return {
                "kd": self.weighted("weight", softened_divergence(x.flatten(0, -2), y.flatten(0, -2), self.temperature))
            }
        # Not a product with the mask: padding may hold NaN.
        x, y = (z.masked_fill(~real[:, :, None], 0.0) for z in (x, y))
        rows = softened_divergence(x.flatten(0, 1), y.flatten(0, 1), self.temperature)
        return {"kd": self.weighted("weight", rows * (real.numel() / real.sum()))}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"temperature={self.temperature}, weight={self.weight}"


class DKDLoss(DistillationLoss):
    """DKD: KL divergence of target against rest (TCKD) and among the other classes (NCKD), with separate weights.

    Parameters
    ----------
    alpha, beta : float or callable
        Weights of TCKD and NCKD.
    temperature : float
        Divides the logits.

    Raises
    ------
    ValueError
        If the temperature is not positive or a weight negative.

    Notes
    -----
    Reads logits (B, classes) of at least 3 classes, and the target (B,). The terms are "tckd" and "nckd", means over
    samples.

    References
    ----------
    Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, equation 7. On CIFAR-100 the weights are 1 and 8 and the
    temperature 4; there the terms also warm up over the first 20 epochs.

    Examples
    --------
    >>> import torch
    >>> logits = torch.randn(8, 5)
    >>> list(DKDLoss().terms(logits, logits, target=torch.arange(8) % 5))
    ['tckd', 'nckd']
    """

    reads = ("logits",)

    def __init__(self, alpha: Weight = 1.0, beta: Weight = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha, self.beta = self.checked_weight("alpha", alpha), self.checked_weight("beta", beta)
        self.temperature = positive("temperature", temperature)

    def compute_terms(self, student: Outputs, teacher: Outputs, target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "tckd" and "nckd"."""
        x, y = logit_pair(student.logits, teacher.logits, type(self).__name__)
        if target is None:
            raise ValueError("DKDLoss needs the class labels. Pass loss(student, teacher, target).")
        if x.shape[1] < 3:
            raise ValueError(
                f"DKDLoss compares the classes other than the target and needs 3 classes, got {x.shape[1]}."
            )
        target = check_target(target, x, type(self).__name__)
        # The numbers of the other classes, (B, classes - 1). A boolean mask would make the host wait for a GPU.
        rest = torch.arange(x.shape[1] - 1, device=x.device)
        rest = rest + (rest >= target[:, None])

        def two_classes(z: Tensor) -> Tensor:
            """The target's logit and the log-sum-exp of all other logits, (B, 2)."""
            z = z / self.temperature
            return torch.cat([z.gather(1, target[:, None]), z.gather(1, rest).logsumexp(1, keepdim=True)], dim=1)

        squared = self.temperature**2
        nckd = softened_divergence(x.gather(1, rest), y.gather(1, rest), self.temperature)
        tckd = squared * softened_divergence(two_classes(x), two_classes(y), 1.0)
        return {"tckd": self.weighted("alpha", tckd), "nckd": self.weighted("beta", nckd)}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"


class DISTLoss(DistillationLoss):
    """DIST: 1 - Pearson correlation of class probabilities, within samples (inter) and within classes (intra).

    Parameters
    ----------
    beta, gamma : float or callable
        Weights of inter (over the classes of each sample) and intra (over the samples of each class).
    temperature : float
        Divides the logits. Its square multiplies the loss, as in the authors' code.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If the temperature is not positive or a weight negative.

    Notes
    -----
    Reads logits (B, classes). The terms are "inter" and "intra". A correlation that is not defined (a class has the
    same probability for all samples, for example 0 after rounding) counts as 0 and has no gradient.

    References
    ----------
    Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, equations 7 to 9: weights 1 and 1 on
    ImageNet; 2, 2 and temperature 4 on CIFAR-100.

    Examples
    --------
    >>> import torch
    >>> logits = torch.randn(8, 5)
    >>> abs(float(DISTLoss()(logits + 2, logits))) < 1e-5
    True
    """

    reads = ("logits",)

    def __init__(
        self, beta: Weight = 1.0, gamma: Weight = 1.0, temperature: float = 1.0, *, gather: bool = True
    ) -> None:
        super().__init__()
        self.beta, self.gamma = self.checked_weight("beta", beta), self.checked_weight("gamma", gamma)
        self.temperature = positive("temperature", temperature)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "inter" and "intra"."""
        x, y = gathered([logit_pair(student.logits, teacher.logits, type(self).__name__)], self.gather)[0]
        x, y = (torch.softmax(z / self.temperature, dim=1) for z in (x, y))
        squared = self.temperature**2
        return {
            "inter": self.weighted("beta", squared * (1 - correlation(x, y).mean())),
            "intra": self.weighted("gamma", squared * (1 - correlation(x.mT, y.mT).mean())),
        }

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}, gather={self.gather}"


def _real(x: Tensor, y: Tensor, student: Outputs, teacher: Outputs) -> Tensor | None:
    """The tokens (B, T) that count, or None if all do; ValueError for a mask of another shape."""
    if x.ndim == 2:
        return None
    for outputs, owner in ((student, "student"), (teacher, "teacher")):
        if outputs.mask is not None and outputs.mask.shape != x.shape[:2]:
            raise ValueError(
                f"The {owner}'s mask has shape {tuple(outputs.mask.shape)}, but its logits are those of "
                f"{tuple(x.shape[:2])} tokens (B, T). Pass the mask of the same tokens."
            )
    real = real_tokens(x, y, student, teacher)
    if real is not None:
        check_real(real, "student")
    return real


def softened_divergence(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """temperature^2 KL(softmax(y / temperature) || softmax(x / temperature)), mean over rows."""
    student, teacher = (functional.log_softmax(z / temperature, dim=1) for z in (x, y))
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of each row of ``x`` (n, m) with the same row of ``y``, shape (n,); 0 if not defined."""
    x, y = (unit_rows(z - z.mean(1, keepdim=True)) for z in (x, y))
    return (x * y).sum(1)
