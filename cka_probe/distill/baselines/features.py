"""Baselines that compare feature maps: FitNet, AT, PKD, CWD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..losses.adapters import Adapters, channels, same_size
from ..losses.checks import feature_pairs, positive, unit_rows
from ..losses.contract import DistillationLoss, Outputs
from ..losses.gather import sum_over_processes
from ..losses.tokens import real_tokens
from ..losses.weight_schedules import Weight
from .logits import softened_divergence

__all__ = ["ATLoss", "CWDLoss", "FitNetLoss", "PKDLoss"]


class FitNetLoss(DistillationLoss):
    """FitNet: mean squared difference between the teacher's features and a learned 1 x 1 map of the student's.

    Parameters
    ----------
    weight : float or callable
        Multiplies the sum over layer pairs.

    Raises
    ------
    ValueError
        If the weight is negative.

    Notes
    -----
    Reads features: maps, matrices or tokens, pair by pair; of tokens with a mask, the real ones. The term is "fitnet".
    The learned 1 x 1 maps are parameters of this loss: call `prepare` on a sample batch before the optimiser is built.
    Maps of different size are average-pooled to the smaller size.

    References
    ----------
    Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, equation 3, as a mean instead of half the sum; weight
    100.

    Examples
    --------
    >>> import torch
    >>> student, teacher = [torch.randn(8, 4, 6, 6)], [torch.randn(8, 16, 3, 3)]
    >>> loss = FitNetLoss()
    >>> loss.prepare(student, teacher)
    >>> loss(student, teacher).shape
    torch.Size([])
    """

    reads = ("features",)

    def __init__(self, weight: Weight = 100.0) -> None:
        super().__init__()
        self.weight = self.checked_weight("weight", weight)
        self.adapters = Adapters(always=True)

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Make the 1 x 1 maps for these features. Call it once, before the optimiser is built."""
        feature_pairs(student_features, teacher_features, "FitNetLoss")
        self.adapters.prepare(student_features, teacher_features)

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "fitnet"."""
        values = []
        for index, (x, y) in enumerate(feature_pairs(student.features, teacher.features, "FitNetLoss")):
            x, y = same_size(x, y)
            x = self.adapters(index, x)
            _check_shapes(x, y, index, "FitNetLoss")
            values.append(_mean_square(x - y, real_tokens(x, y, student, teacher)))
        return {"fitnet": self.weighted("weight", torch.stack(values).sum())}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}"


class ATLoss(DistillationLoss):
    """AT: mean squared difference of spatial attention maps, the channel means of |activation|^power at norm 1.

    Parameters
    ----------
    weight : float or callable
        Multiplies the sum over layer pairs.
    power : float
        Exponent of the activations.

    Raises
    ------
    ValueError
        If the weight is negative or the power not positive.

    Notes
    -----
    Reads features: maps (B, C, H, W), pair by pair; channels may differ. The term is "at". Maps of different size are
    average-pooled to the smaller size.

    References
    ----------
    Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, equation 2, as a mean of squares, as in
    their code; weight 1000, power 2.

    Examples
    --------
    >>> import torch
    >>> maps = torch.randn(8, 4, 3, 3)
    >>> abs(float(ATLoss()(2 * maps, maps))) < 1e-6
    True
    """

    reads = ("features",)

    def __init__(self, weight: Weight = 1000.0, power: float = 2.0) -> None:
        super().__init__()
        self.weight, self.power = self.checked_weight("weight", weight), positive("power", power)

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "at"."""
        values = []
        for index, (x, y) in enumerate(feature_pairs(student.features, teacher.features, "ATLoss")):
            _check_maps(x, y, index, "ATLoss")
            x, y = (unit_rows(z.abs().pow(self.power).mean(1).flatten(1)) for z in same_size(x, y))
            values.append(functional.mse_loss(x, y))
        return {"at": self.weighted("weight", torch.stack(values).sum())}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, power={self.power}"


class PKDLoss(DistillationLoss):
    """PKD: 1 - Pearson correlation of each channel over batch and space, mean over channels.

    Parameters
    ----------
    weight : float or callable
        Multiplies the sum over layer pairs.
    gather : bool
        If true, the correlations are those of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If the weight is negative.

    Notes
    -----
    Reads features: maps (B, C, H, W) with equal channels, pair by pair. The term is "pkd". Maps of different size are
    average-pooled to the smaller size.

    Half the mean squared difference of standardised features is exactly 1 - r if the variance is a mean over the n
    values; the authors' code divides by n - 1 and adds 1e-6. A channel that is constant in one network has no
    correlation and counts as r = 0.

    References
    ----------
    Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient, NeurIPS
    2022, equations 2 to 4.

    Examples
    --------
    >>> import torch
    >>> maps = torch.randn(2, 4, 8, 8)
    >>> abs(float(PKDLoss()(2 * maps + 1, maps))) < 1e-5
    True
    """

    reads = ("features",)

    def __init__(self, weight: Weight = 1.0, *, gather: bool = True) -> None:
        super().__init__()
        self.weight, self.gather = self.checked_weight("weight", weight), gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "pkd"."""
        values = []
        for index, (x, y) in enumerate(feature_pairs(student.features, teacher.features, "PKDLoss")):
            _check_maps(x, y, index, "PKDLoss")
            x, y = same_size(x, y)
            _check_shapes(x, y, index, "PKDLoss")
            values.append(1 - self._correlations(x, y).mean())
        return {"pkd": self.weighted("weight", torch.stack(values).sum())}

    def _correlations(self, x: Tensor, y: Tensor) -> Tensor:
        """Correlation of each channel, shape (C,), over all samples and pixels of all processes."""
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        # The centred products have no gradient with respect to the means, so x is detached here.
        sums = torch.stack([x.detach().sum((0, 2, 3)), y.sum((0, 2, 3)), x.new_full(x.shape[1:2], pixels)])
        sums = sum_over_processes(sums) if self.gather else sums
        x, y = (z - (total / sums[2])[:, None, None] for z, total in ((x, sums[0]), (y, sums[1])))
        products = torch.stack([(a * b).sum((0, 2, 3)) for a, b in ((x, y), (x, x), (y, y))])
        cross, own_x, own_y = sum_over_processes(products) if self.gather else products
        defined = (own_x > 0) & (own_y > 0)
        norms = torch.where(defined, own_x, 1).sqrt() * torch.where(defined, own_y, 1).sqrt()
        return torch.where(defined, cross / norms, 0.0)

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, gather={self.gather}"


class CWDLoss(DistillationLoss):
    """CWD: KL(teacher || student) of each channel's softmax over space, mean over channels.

    Parameters
    ----------
    weight : float or callable
        Multiplies the sum over layer pairs.
    temperature : float
        Divides the activations. Its square multiplies the loss.

    Raises
    ------
    ValueError
        If the weight is negative or the temperature not positive.

    Notes
    -----
    Reads features: maps (B, C, H, W), pair by pair. The term is "cwd". If channels differ, a learned 1 x 1 map is a
    parameter of this loss: call `prepare` before the optimiser is built. Maps of different size are average-pooled to
    the smaller size.

    References
    ----------
    Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, equations 3 and 4; weight 10 and
    temperature 1 for the feature pyramids of detectors.

    Examples
    --------
    >>> import torch
    >>> maps = torch.randn(2, 4, 8, 8)
    >>> loss = CWDLoss()
    >>> loss.prepare([maps], [maps])
    >>> abs(float(loss(maps + 3, maps))) < 1e-5
    True
    """

    reads = ("features",)

    def __init__(self, weight: Weight = 10.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight, self.temperature = self.checked_weight("weight", weight), positive("temperature", temperature)
        self.adapters = Adapters(always=False)

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Make a 1 x 1 map for each pair with different channels. Call it once, before the optimiser is built."""
        feature_pairs(student_features, teacher_features, "CWDLoss")
        self.adapters.prepare(student_features, teacher_features)

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "cwd"."""
        values = []
        for index, (x, y) in enumerate(feature_pairs(student.features, teacher.features, "CWDLoss")):
            _check_maps(x, y, index, "CWDLoss")
            x, y = same_size(x, y)
            if channels(x) != channels(y):
                x = self.adapters(index, x)
            rows = [z.flatten(2).flatten(0, 1) for z in (x, y)]
            values.append(softened_divergence(rows[0], rows[1], self.temperature))
        return {"cwd": self.weighted("weight", torch.stack(values).sum())}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, temperature={self.temperature}"


def _mean_square(apart: Tensor, real: Tensor | None) -> Tensor:
    """Mean over all entries, or over those of the real tokens (B, T)."""
    if real is None:
        return apart.square().mean()
    # Not a product with the mask: padding may hold NaN.
    apart = apart.flatten(2).masked_fill(~real[:, :, None], 0.0)
    return apart.square().sum() / (real.sum() * apart.shape[2])


def _check_maps(x: Tensor, y: Tensor, index: int, loss: str) -> None:
    for feature, owner in ((x, "student"), (y, "teacher")):
        if feature.ndim != 4:
            raise ValueError(
                f"{loss} compares maps, but the {owner}'s feature {index} has shape {tuple(feature.shape)} instead of "
                "(B, C, H, W). Tap a convolutional layer."
            )


def _check_shapes(x: Tensor, y: Tensor, index: int, loss: str) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"{loss} compares features entry by entry, but feature {index} has shape {tuple(x.shape)} in the student "
            f"and {tuple(y.shape)} in the teacher. Tap layers of equal shape, or use a loss that accepts different "
            "shapes (RCKALoss)."
        )
