"""CKA as a training loss: of features (FCKA), of logits over samples and over classes (LCKA), of both (RCKA).

Each term is weight * (1 - CKA), so that 0 is a perfect match, and is computed in float32 inside autocast (a naive half
precision CKA is NaN, or wrong by 1e-3: MATH 8). Widths may differ without a projector: the Gram matrices are B x B on
both sides.

Why the biased estimator is the default here, while `compare` takes the unbiased: it is the paper's; it stays in
[0, 1], so that a term of 0 is the optimum and 1 - CKA bounds an MMD (MATH 7, T1); and it exists for every batch. Its
level for unrelated features, far above 0 when the batch is small (``chance_level``), is an offset that a loss can live
with. The unbiased estimator drops the diagonals of the Gram matrices, the norms of single samples, from value and
gradient.

A CKA that is not defined (a layer that is constant over the batch) stops the run with the name of the feature. Leaving
the term out instead would hide a dead layer, and NaN would spoil every weight at the next step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...estimators.alignment import cka_of_features
from ...estimators.kernels import Kernel, Linear
from ...estimators.validation import check_estimator
from .alignments import both_of_matrix, cka_of_centred
from .checks import check_classes, check_defined, check_samples
from .contract import (
    DistillationLoss,
    Outputs,
    feature_pairs,
    gathered,
    logit_pair,
    matrix,
    not_negative,
    positive,
    unit_rows,
)
from .uncentred import uncentred_cka
from .wide_gram import centred_wide_gram

__all__ = ["FeatureCKALoss", "LogitCKALoss", "RCKALoss"]

VARIANTS = ("paper", "released")


class FeatureCKALoss(DistillationLoss):
    """FCKA: the weighted mean over layer pairs of 1 - CKA of their activations.

    Parameters
    ----------
    weight : float
        Multiplies the mean over pairs.
    kernel : Kernel, optional
        Of both sides; linear when left out.
    estimator : "biased" or "unbiased"
        The unbiased needs 4 samples, and its term may be above 1.
    variant : "paper" or "released"
        "released" gives the value and gradient of the paper's code: minus the un-centred CKA of row-normalised Gram
        matrices that are used as features.
    gather : bool
        Whether the batch of all processes is gathered under torch.distributed. Without it each process has its own
        CKA, whose mean has another gradient.

    Raises
    ------
    ValueError
        For a negative weight, an unknown estimator or variant, or a kernel or estimator that "released" does not have.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024; PAPER.md, FCKA and
    departures 1 and 4.

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
        weight: float = 1.0,
        *,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.kernel, self.estimator, self.variant = _settings(kernel, estimator, variant)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The one weighted term "features"; none at weight 0.

        Parameters
        ----------
        student_logits, teacher_logits, target
            Not used.
        student_features, teacher_features : sequence of Tensor (B, ...)
            Activations of the tapped layers, pair by pair; every sample is flattened.

        Returns
        -------
        dict of str to Tensor
            A scalar between 0 and the weight (biased), float64 for float64 features and float32 for the rest.

        Raises
        ------
        TypeError
            If a feature is no floating tensor.
        ValueError
            If lists or batches do not fit, the batch is too small, or the CKA of a pair is not defined (a layer that is
            constant over the batch, NaN, infinity): the message names the feature.
        """
        if not self.weight:
            return {}
        pairs = feature_pairs(student.features, teacher.features, type(self).__name__)
        matrices = gathered([(matrix(x), matrix(y)) for x, y in pairs], self.gather)
        values = [self._value(x, y, index) for index, (x, y) in enumerate(matrices)]
        mean = torch.stack(values).mean()
        return {"features": self.weight * _distance(mean, self.variant).to(matrices[0][0].dtype)}

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
        """The settings, as they are given."""
        return f"weight={self.weight}, {_described(self)}"


class LogitCKALoss(DistillationLoss):
    """LCKA: 1 - CKA of the logits over samples (intra) and over classes (inter), weighted and added.

    Parameters
    ----------
    intra_weight : float
        Of the alignment of the B x B Gram matrices over samples.
    inter_weight : float
        Of the alignment of the P x P Gram matrices over classes, which needs at least 3 classes (4 when unbiased).
    temperature : float, optional
        Compares softmax(logits / temperature) instead of the logits.
    kernel : Kernel, optional
        Of both sides; linear when left out.
    estimator : "biased" or "unbiased"
        The unbiased needs 4 samples and 4 classes, and its terms may be above their weight.
    variant : "paper" or "released"
        "released" gives the value and gradient of the paper's code: minus the CKA of un-centred Gram matrices whose
        rows are divided by the norms of the samples, inter weighted by ``intra_weight`` (its own weight only switches
        it on), and the temperature in intra only.
    gather : bool
        Whether the batch of all processes is gathered under torch.distributed.

    Raises
    ------
    ValueError
        For a negative weight, a temperature that is not positive, an unknown estimator or variant, or a kernel or
        estimator that "released" does not have.

    References
    ----------
    Zhou et al., IJCAI 2024; PAPER.md, LCKA and departures 1 to 3.

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
        intra_weight: float = 15.0,
        inter_weight: float = 15.0,
        *,
        temperature: float | None = None,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.intra_weight = not_negative("intra_weight", intra_weight)
        self.inter_weight = not_negative("inter_weight", inter_weight)
        self.temperature = None if temperature is None else positive("temperature", temperature)
        self.kernel, self.estimator, self.variant = _settings(kernel, estimator, variant)
        self.gather = gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "intra" and "inter"; one with weight 0 is left out.

        Parameters
        ----------
        student_logits, teacher_logits : Tensor (B, P)
            Of the same samples and classes.
        student_features, teacher_features, target
            Not used.

        Returns
        -------
        dict of str to Tensor
            Scalars between 0 and their weight (biased), float64 for float64 logits and float32 for the rest.

        Raises
        ------
        TypeError
            If the logits are no floating tensors.
        ValueError
            If the shapes do not fit, there are too few samples or classes, or the CKA is not defined (constant logits,
            NaN, infinity).
        """
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
            terms["intra"] = self.intra_weight * _distance(over_samples, self.variant).to(x.dtype)
        if inter:
            check_defined(over_classes, soft_x.mT, soft_y.mT, "transposed logits")
            # Departure 3: the released code weighs inter by the intra weight.
            weight = self.intra_weight if released else self.inter_weight
            terms["inter"] = weight * _distance(over_classes, self.variant).to(x.dtype)
        return terms

    def _alignment(self, x: Tensor, y: Tensor) -> Tensor:
        if self.variant == "released":
            return uncentred_cka(x, y, rows_scaled=True)
        return cka_of_features(torch, x, y, self.kernel, self.kernel, self.estimator)

    def extra_repr(self) -> str:
        """The settings, as they are given."""
        return (
            f"intra_weight={self.intra_weight}, inter_weight={self.inter_weight}, temperature={self.temperature}, "
            f"{_described(self)}"
        )


class RCKALoss(DistillationLoss):
    """RCKA: FCKA of the features plus LCKA of the logits, intra and inter.

    Parameters
    ----------
    feature_weight : float
        Of 1 - CKA of the features, the mean over layer pairs. At 0 no features are needed.
    intra_weight, inter_weight : float
        As in `LogitCKALoss`.
    temperature, kernel, estimator, variant, gather
        As in `LogitCKALoss` and `FeatureCKALoss`.

    Raises
    ------
    ValueError
        As these two.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, equations 12 to 14; weights
    of its code: 1, 15, 15.

    Examples
    --------
    >>> import torch
    >>> logits, maps = torch.randn(8, 5), torch.randn(8, 4, 3, 3)
    >>> list(RCKALoss().terms(Outputs(logits, (maps,)), Outputs(logits, (maps,))))
    ['features', 'intra', 'inter']
    """

    def __init__(
        self,
        feature_weight: float = 1.0,
        intra_weight: float = 15.0,
        inter_weight: float = 15.0,
        *,
        temperature: float | None = None,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        not_negative("feature_weight", feature_weight)
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
        """The weighted terms "features", "intra" and "inter"; one with weight 0 is left out.

        Parameters
        ----------
        student_logits, teacher_logits : Tensor (B, P)
            Of the same samples and classes.
        student_features, teacher_features : sequence of Tensor (B, ...)
            Activations of the tapped layers, pair by pair.
        target
            Not used.

        Returns
        -------
        dict of str to Tensor
            Scalars.

        Raises
        ------
        TypeError, ValueError
            As the terms of `FeatureCKALoss` and `LogitCKALoss`.
        """
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
    """1 - CKA, or -CKA where the value of the released code is asked for."""
    return -value if variant == "released" else 1 - value
