"""Baselines that compare relations between samples: SP, RKD, CC."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ...estimators.distances import squared_distances
from ..losses.checks import positive, unit_rows
from ..losses.contract import DistillationLoss, Outputs
from ..losses.tokens import sample_matrices
from ..losses.weight_schedules import Weight

__all__ = ["CCLoss", "RKDLoss", "SPLoss"]


class SPLoss(DistillationLoss):
    """SP: the mean squared difference of row-normalised sample similarity matrices, summed over layer pairs.

    Parameters
    ----------
    weight : float or callable
        Multiplies the sum.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If the weight is negative.

    Notes
    -----
    Reads features (B, ...), pair by pair; tokens with a mask as their mean over the real ones. The term is "sp".

    References
    ----------
    Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, equations 1 to 4; weight 3000.

    Examples
    --------
    >>> import torch
    >>> maps = torch.randn(8, 4, 3, 3)
    >>> abs(float(SPLoss()(2 * maps, maps))) < 1e-6
    True
    """

    reads = ("features",)

    def __init__(self, weight: Weight = 3000.0, *, gather: bool = True) -> None:
        super().__init__()
        self.weight, self.gather = self.checked_weight("weight", weight), gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "sp"."""
        values = []
        for x, y in sample_matrices(student, teacher, "SPLoss", self.gather):
            x, y = (unit_rows(z @ z.mT) for z in (x, y))
            values.append((x - y).square().mean())
        return {"sp": self.weighted("weight", torch.stack(values).sum())}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, gather={self.gather}"


class RKDLoss(DistillationLoss):
    """RKD: Huber losses of the distances between samples (over their mean) and of the angles in triplets.

    Parameters
    ----------
    distance_weight, angle_weight : float or callable
        Weights of the two terms, each a sum over layer pairs.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If a weight is negative.

    Notes
    -----
    Reads features (B, ...), pair by pair; tokens with a mask as their mean over the real ones. The terms are "distance"
    and "angle". The angle term needs memory for B^3 numbers. The authors tap only the embedding before the classifier.

    References
    ----------
    Park, Kim, Lu and Cho, Relational Knowledge Distillation, CVPR 2019, equations 5 to 10; weights 25 and 50. As in
    their code, the means run over all ordered pairs and triplets, including those with a sample twice, which always
    match. The mean distance runs over the pairs with a distance above 0.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(8, 4)
    >>> float(RKDLoss()(5 * x + 1, x)) < 1e-3
    True
    """

    reads = ("features",)

    def __init__(self, distance_weight: Weight = 25.0, angle_weight: Weight = 50.0, *, gather: bool = True) -> None:
        super().__init__()
        self.distance_weight = self.checked_weight("distance_weight", distance_weight)
        self.angle_weight = self.checked_weight("angle_weight", angle_weight)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "distance" and "angle"."""
        pairs = sample_matrices(student, teacher, "RKDLoss", self.gather)
        huber = functional.smooth_l1_loss
        distance = torch.stack([huber(_scaled_distances(x), _scaled_distances(y)) for x, y in pairs]).sum()
        angle = torch.stack([huber(_angles(x), _angles(y)) for x, y in pairs]).sum()
        return {"distance": self.weighted("distance_weight", distance), "angle": self.weighted("angle_weight", angle)}

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}, gather={self.gather}"


class CCLoss(DistillationLoss):
    """CC: the mean squared difference of Gaussian correlation matrices of unit features, by their Taylor expansion.

    Parameters
    ----------
    weight : float or callable
        Multiplies the sum over layer pairs.
    gamma : float
        Factor in the kernel exp(-gamma |u - v|^2).
    order : int
        Highest power of the expansion.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If the weight is negative, gamma not positive, or the order no whole number of at least 1.

    Notes
    -----
    Reads features (B, ...), pair by pair; tokens with a mask as their mean over the real ones. The term is "cc".

    References
    ----------
    Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, equations 6, 9 and 10; gamma 0.4 and
    order 2.

    Examples
    --------
    >>> import torch
    >>> maps = torch.randn(8, 4, 3, 3)
    >>> abs(float(CCLoss()(2 * maps, maps))) < 1e-6
    True
    """

    reads = ("features",)

    def __init__(self, weight: Weight = 100.0, gamma: float = 0.4, order: int = 2, *, gather: bool = True) -> None:
        super().__init__()
        self.weight, self.gamma = self.checked_weight("weight", weight), positive("gamma", gamma)
        if order < 1 or order != int(order):
            raise ValueError(f"`order` must be a whole number of at least 1, got {order!r}.")
        self.order, self.gather = int(order), gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "cc"."""
        pairs = sample_matrices(student, teacher, "CCLoss", self.gather)
        values = [(self._correlation(x) - self._correlation(y)).square().mean() for x, y in pairs]
        return {"cc": self.weighted("weight", torch.stack(values).sum())}

    def _correlation(self, x: Tensor) -> Tensor:
        """Taylor expansion of exp(-gamma |u - v|^2) for unit rows u, v, (B, B)."""
        x = unit_rows(x)
        cosines = x @ x.mT
        powers = [(2 * self.gamma) ** p / math.factorial(p) * cosines**p for p in range(self.order + 1)]
        return math.exp(-2 * self.gamma) * torch.stack(powers).sum(0)

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, gamma={self.gamma}, order={self.order}, gather={self.gather}"


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances (B, B). A distance of 0, as on the diagonal, gets no gradient."""
    squared = squared_distances(x)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))


def _scaled_distances(x: Tensor) -> Tensor:
    """Distances (B, B) divided by the mean of those above 0."""
    distances = _distances(x)
    apart = (distances > 0).sum()
    mean = distances.sum() / torch.where(apart > 0, apart, torch.ones_like(apart))
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean))


def _angles(x: Tensor) -> Tensor:
    """Cosine of the angle at j between the directions to i and k, as [j, i, k]; 0 if two of them coincide."""
    x = x - x.mean(0, keepdim=True).detach()
    gram = x @ x.mT
    # (x_i - x_j) . (x_k - x_j) from the Gram matrix, without the B x B x d differences.
    products = gram[None] - gram[:, :, None] - gram[:, None, :] + torch.diagonal(gram)[:, None, None]
    distances = _distances(x)
    lengths = distances[:, :, None] * distances[:, None, :]
    return torch.where(lengths > 0, products / torch.where(lengths > 0, lengths, torch.ones_like(lengths)), 0.0)
