"""CKA as a training loss: of features (FCKA), of logits over samples and over classes (LCKA), of both (RCKA).

Each term is weight * (1 - CKA), so that 0 is a perfect match. The widths of the networks may differ without a
projector, because the Gram matrices are B x B on both sides.

The biased estimator is the default here, while `compare` takes the unbiased. The paper uses it; it stays in [0, 1], so
that a term of 0 is the optimum and 1 - CKA bounds an MMD (T1 in docs/theory.md, section 7); it exists for every batch.
Its value for unrelated features is far above 0 when the batch is small (``chance_level``), which is a constant offset
in a loss. The unbiased estimator leaves the norms of single samples, the diagonals of the Gram matrices, out of value
and gradient.

If a CKA is not defined (a layer is constant over the batch), the loss raises an error that names the feature. Leaving
out the term would hide a dead layer, and NaN would spoil all weights in the next step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...estimators.alignment import cka_of_features
from ...estimators.kernels import Kernel, Linear
from ...estimators.validation import check_estimator
from .alignments import both_of_matrix, cka_of_centred
from .checks import (
    check_classes,
    check_defined,
    check_samples,
    logit_pair,
    positive,
    unit_rows,
)
from .contract import DistillationLoss, Outputs
from .gather import gathered
from .tokens import sample_matrices
from .uncentred import uncentred_cka
from .weight_schedules import Weight, checked_weight
from .wide_gram import centred_wide_gram

__all__ = ["FeatureCKALoss", "LogitCKALoss", "RCKALoss"]

VARIANTS = ("paper", "released")


class FeatureCKALoss(DistillationLoss):
    """FCKA: the weighted mean over layer pairs of 1 - CKA of their activations.

    Parameters
    ----------
    weight : float or callable
        Multiplies the mean over pairs. This and every other weight may be a schedule, such as `ramp`.
    kernel : Kernel, optional
        Kernel for both networks; linear by default.
    estimator : "biased" or "unbiased"
        The unbiased estimator needs 4 samples, and its term may exceed the weight.
    variant : "paper" or "released"
        "released" gives the value and gradient of the paper's code: minus the un-centred CKA of row-normalised Gram
        matrices that are used as features.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed. If false, each process takes
        the CKA of its own samples; the mean of these has another gradient.

    Raises
    ------
    ValueError
        If the weight is negative, the estimator or variant unknown, or the kernel or estimator not that of "released".

    Notes
    -----
    Reads features (B, ...), pair by pair; every sample is flattened. Tokens (B, T, d) in a batch with a mask (B, T) are
    averaged over the real ones first, as in `cka_probe.compare`. The term is "features", between 0 and the weight
    (biased). There is none at weight 0. A pair whose CKA is not defined is a ValueError that names the feature.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024; docs/paper.md, section 1
    (FCKA) and section 2 (departures 1 and 4).

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> loss = FeatureCKALoss()
    >>> round(abs(float(loss(2 * x + 5, x))), 6)
    0.0
    """

    reads = ("features",)

    def __init__(
        self,
        weight: Weight = 1.0,
        *,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.weight = self.checked_weight("weight", weight)
        self.kernel, self.estimator, self.variant = _settings(kernel, estimator, variant)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted term "features"; none at weight 0."""
        if not self.weight:
            return {}
        matrices = sample_matrices(student, teacher, type(self).__name__, self.gather)
        values = [self._value(x, y, index) for index, (x, y) in enumerate(matrices)]
        mean = torch.stack(values).mean()
        return {"features": self.weighted("weight", _distance(mean, self.variant).to(matrices[0][0].dtype))}

    def _value(self, x: Tensor, y: Tensor, index: int) -> Tensor:
        check_samples(len(x), self.estimator)
        if self.variant == "released":
            value = uncentred_cka(unit_rows(x @ x.mT), unit_rows(y @ y.mT), rows_scaled=False)
        elif isinstance(self.kernel, Linear) and len(x) <= min(x.shape[1], y.shape[1]):
            value = cka_of_centred(centred_wide_gram(x)[None], centred_wide_gram(y)[None], self.estimator)[0]
        else:
            value = cka_of_features(torch, x, y, self.kernel, self.kernel, self.estimator)
        check_defined(value, x, y, f"feature {index}")
        return value

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return f"weight={self.weight}, {_described(self)}"


class LogitCKALoss(DistillationLoss):
    """LCKA: 1 - CKA of the logits over samples (intra) and over classes (inter), weighted and added.

    Parameters
    ----------
    intra_weight : float or callable
        Weight of the alignment of the B x B Gram matrices over samples.
    inter_weight : float or callable
        Weight of the alignment of the P x P Gram matrices over classes. It needs at least 3 classes (unbiased: 4).
    temperature : float, optional
        If given, softmax(logits / temperature) is compared instead of the logits.
    kernel : Kernel, optional
        Kernel for both networks; linear by default.
    estimator : "biased" or "unbiased"
        The unbiased estimator needs 4 samples and 4 classes, and its terms may exceed their weights.
    variant : "paper" or "released"
        "released" gives the value and gradient of the paper's code: minus the CKA of un-centred Gram matrices whose
        rows are divided by the norms of the samples. There the inter term has the weight ``intra_weight`` (its own
        weight only switches it on), and the temperature applies to intra only.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If a weight is negative, the temperature not positive, the estimator or variant unknown, or the kernel or
        estimator not that of "released".

    Notes
    -----
    Reads logits (B, P) of the same samples and classes. The terms are "intra" and "inter", between 0 and their weight
    (biased); one with weight 0 is left out. Constant logits have no CKA and are a ValueError.

    References
    ----------
    Zhou et al., IJCAI 2024; docs/paper.md, section 1 (LCKA) and section 2 (departures 1 to 3).

    Examples
    --------
    >>> import torch
    >>> logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    >>> terms = LogitCKALoss().terms(2 * logits, logits)
    >>> {name: round(abs(float(term)), 5) for name, term in terms.items()}
    {'intra': 0.0, 'inter': 0.0}
    """

    reads = ("logits",)

    def __init__(
        self,
        intra_weight: Weight = 15.0,
        inter_weight: Weight = 15.0,
        *,
        temperature: float | None = None,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.intra_weight = self.checked_weight("intra_weight", intra_weight)
        self.inter_weight = self.checked_weight("inter_weight", inter_weight)
        self.temperature = None if temperature is None else positive("temperature", temperature)
        self.kernel, self.estimator, self.variant = _settings(kernel, estimator, variant)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "intra" and "inter"; one with weight 0 is left out."""
        if not self.intra_weight and not self.inter_weight:
            return {}
        x, y = gathered([logit_pair(student.logits, teacher.logits, type(self).__name__)], self.gather)[0]
        soft_x, soft_y = x, y
        if self.temperature is not None:
            soft_x, soft_y = (torch.softmax(z / self.temperature, dim=1) for z in (x, y))
        intra, inter = bool(self.intra_weight), bool(self.inter_weight)
        if intra:
            check_samples(len(x), self.estimator)
        if inter:
            check_classes(x.shape[1], self.estimator)
        released = self.variant == "released"
        if intra and inter and not released and self.estimator == "biased" and isinstance(self.kernel, Linear):
            over_samples, over_classes = both_of_matrix(soft_x, soft_y)
        else:
            over_x, over_y = (x, y) if released else (soft_x, soft_y)
            over_samples = self._alignment(soft_x, soft_y) if intra else x.new_zeros(())
            over_classes = self._alignment(over_x.mT, over_y.mT) if inter else x.new_zeros(())
        terms = {}
        if intra:
            check_defined(over_samples, soft_x, soft_y, "logits")
            terms["intra"] = self.weighted("intra_weight", _distance(over_samples, self.variant).to(x.dtype))
        if inter:
            check_defined(over_classes, soft_x.mT, soft_y.mT, "transposed logits")
            # The released code multiplies inter by the intra weight (docs/paper.md, departure 3).
            weight = "intra_weight" if released else "inter_weight"
            terms["inter"] = self.weighted(weight, _distance(over_classes, self.variant).to(x.dtype))
        return terms

    def _alignment(self, x: Tensor, y: Tensor) -> Tensor:
        if self.variant == "released":
            return uncentred_cka(x, y, rows_scaled=True)
        return cka_of_features(torch, x, y, self.kernel, self.kernel, self.estimator)

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return (
            f"intra_weight={self.intra_weight}, inter_weight={self.inter_weight}, temperature={self.temperature}, "
            f"{_described(self)}"
        )


class RCKALoss(DistillationLoss):
    """RCKA: FCKA of the features plus LCKA of the logits, intra and inter.

    Parameters
    ----------
    feature_weight : float or callable
        Weight of 1 - CKA of the features, the mean over layer pairs. At 0 the loss reads logits only.
    intra_weight, inter_weight : float or callable
        As in `LogitCKALoss`.
    temperature, kernel, estimator, variant, gather
        As in `LogitCKALoss` and `FeatureCKALoss`.

    Raises
    ------
    ValueError
        As in these two.

    Notes
    -----
    Reads logits (B, P) and features (B, ...). The terms are "features", "intra" and "inter"; one with weight 0 is left
    out.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, equations 12 to 14. Weights
    1, 15, 15 are a guess from its code: docs/paper.md, section 1.

    Examples
    --------
    >>> import torch
    >>> logits, maps = torch.randn(8, 5), torch.randn(8, 4, 3, 3)
    >>> list(RCKALoss().terms(Outputs(logits, (maps,)), Outputs(logits, (maps,))))
    ['features', 'intra', 'inter']
    """

    def __init__(
        self,
        feature_weight: Weight = 1.0,
        intra_weight: Weight = 15.0,
        inter_weight: Weight = 15.0,
        *,
        temperature: float | None = None,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        checked_weight("feature_weight", feature_weight)
        with_logits = bool(intra_weight or inter_weight or not feature_weight)
        self.reads = ("logits",) * with_logits + ("features",) * bool(feature_weight)
        self.features = FeatureCKALoss(
            feature_weight, kernel=kernel, estimator=estimator, variant=variant, gather=gather
        )
        self.logits = LogitCKALoss(
            intra_weight,
            inter_weight,
            temperature=temperature,
            kernel=kernel,
            estimator=estimator,
            variant=variant,
            gather=gather,
        )

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "features", "intra" and "inter"; one with weight 0 is left out."""
        return {**self.features.terms(student, teacher), **self.logits.terms(student, teacher)}


def _settings(kernel: Kernel | None, estimator: str, variant: str) -> tuple[Kernel, str, str]:
    check_estimator(estimator)
    if variant not in VARIANTS:
        raise ValueError(f'`variant` must be "paper" or "released", got {variant!r}.')
    if variant == "released" and (estimator != "biased" or not isinstance(kernel or Linear(), Linear)):
        raise ValueError(
            'The released code has the linear kernel and the biased estimator only. Use variant="paper" for '
            f"{kernel or Linear()!r} and {estimator!r}."
        )
    return kernel or Linear(), estimator, variant


def _described(loss: FeatureCKALoss | LogitCKALoss) -> str:
    return f"kernel={loss.kernel!r}, estimator={loss.estimator!r}, variant={loss.variant!r}, gather={loss.gather}"


def _distance(value: Tensor, variant: str) -> Tensor:
    """1 - CKA; for "released" -CKA, as in the paper's code."""
    return -value if variant == "released" else 1 - value
