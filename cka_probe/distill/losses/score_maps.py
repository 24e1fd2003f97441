"""The alignment of class-score maps of segmenters, by factored products."""

from __future__ import annotations

import torch
from torch import Tensor

from ...estimators.alignment import cka_of_features
from ...estimators.kernels import Linear
from ...estimators.validation import check_estimator
from .checks import check_classes, check_defined, check_samples
from .contract import DistillationLoss, Outputs, feature_pairs, gathered, not_negative, unit_rows
from .patches import resized
from .uncentred import uncentred_cka

__all__ = ["SegmentationCKALoss"]


class SegmentationCKALoss(DistillationLoss):
    """1 - CKA of class-score maps (B, P, H, W), given as logits: intra and inter, weighted and added.

    relation    intra aligns             inter aligns
    "pixel"     the B H W pixels         the P classes           LCKA with every pixel as a sample
    "sample"    the B images             the P H W scores        the paper's, for large batches

    Parameters
    ----------
    intra_weight, inter_weight : float
        Of the two terms.
    relation : "pixel" or "sample", optional
        "pixel" when None, and "sample" with "released". With few images on a device, "sample" says little: the centred
        CKA of two is 1 whatever they are.
    estimator : "biased" or "unbiased"
        As in `LogitCKALoss`.
    variant : "paper" or "released"
        "paper" compares scores of unit norm (each pixel's, or each image's, and each class's) and centres. "released"
        gives the value and gradient of the paper's code: minus the CKA of un-centred Gram matrices whose rows alone are
        scaled, inter weighted by ``intra_weight``.
    gather : bool
        Whether the batch of all processes is gathered under torch.distributed.

    Raises
    ------
    ValueError
        For a negative weight, an unknown relation, estimator or variant, or "released" with relation "pixel" or the
        unbiased estimator.

    Notes
    -----
    No Gram matrix over pixels is formed: at 512 x 1024 it would have 2.7e11 entries. ||X'Y||^2 and its weighted form
    for the released code need P x P, or B x B, products alone. Tap the scores before they are upsampled to the image:
    they say the same at a fraction of the cost.

    References
    ----------
    Zhou et al., IJCAI 2024; PAPER.md, Segmentation and departure 9; weights 10 and 10.

    Examples
    --------
    >>> import torch
    >>> scores = torch.randn(2, 5, 16, 16)
    >>> abs(float(SegmentationCKALoss()(2 * scores, scores))) < 1e-5
    True
    """

    reads = ("logits",)

    def __init__(
        self,
        intra_weight: float = 10.0,
        inter_weight: float = 10.0,
        *,
        relation: str | None = None,
        estimator: str = "biased",
        variant: str = "paper",
        gather: bool = True,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        if variant not in ("paper", "released"):
            raise ValueError(f'`variant` must be "paper" or "released", got {variant!r}.')
        relation = relation or ("pixel" if variant == "paper" else "sample")
        if relation not in ("pixel", "sample"):
            raise ValueError(f'`relation` must be "pixel" or "sample", got {relation!r}.')
        if variant == "released" and (relation, estimator) != ("sample", "biased"):
            raise ValueError('The released code has relation="sample" and estimator="biased" only.')
        self.intra_weight = not_negative("intra_weight", intra_weight)
        self.inter_weight = not_negative("inter_weight", inter_weight)
        self.relation, self.estimator, self.variant, self.gather = relation, estimator, variant, gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "intra" and "inter"; one with weight 0 is left out.

        Parameters
        ----------
        student_logits, teacher_logits : Tensor (B, P, H, W)
            Class scores; the teacher's are resized to the student's size where they differ.
        student_features, teacher_features, target
            Not used.

        Returns
        -------
        dict of str to Tensor
            Scalars between 0 and their weight (biased).

        Raises
        ------
        TypeError
            If the scores are no floating tensors.
        ValueError
            If the shapes do not fit, there are too few samples or classes, or the CKA is not defined.
        """
        if not self.intra_weight and not self.inter_weight:
            return {}
        x, y = gathered([_score_maps(student.logits, teacher.logits)], self.gather)[0]
        if self.relation == "pixel":
            x, y = (z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in (x, y))
        else:
            x, y = x.flatten(1), y.flatten(1)
        terms = {}
        if self.intra_weight:
            check_samples(len(x), self.estimator)
            terms["intra"] = self.intra_weight * self._distance(x, y, "score maps")
        if self.inter_weight:
            check_classes(x.shape[1], self.estimator)
            weight = self.intra_weight if self.variant == "released" else self.inter_weight
            terms["inter"] = weight * self._distance(x.mT, y.mT, "transposed score maps")
        return terms

    def _distance(self, x: Tensor, y: Tensor, what: str) -> Tensor:
        if self.variant == "released":
            value = uncentred_cka(x, y, rows_scaled=True)
        else:
            x, y = unit_rows(x), unit_rows(y)
            value = cka_of_features(torch, x, y, Linear(), Linear(), self.estimator)
        check_defined(value, x, y, what)
        return (-value if self.variant == "released" else 1 - value).to(x.dtype)

    def extra_repr(self) -> str:
        """The settings, as they are given."""
        return (
            f"intra_weight={self.intra_weight}, inter_weight={self.inter_weight}, relation={self.relation!r}, "
            f"estimator={self.estimator!r}, variant={self.variant!r}, gather={self.gather}"
        )


def _score_maps(student: Tensor | None, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both as maps of one size in full precision, the teacher's without gradient."""
    maps = []
    for scores, owner in ((student, "student"), (teacher, "teacher")):
        if scores is None:
            raise ValueError(
                f"SegmentationCKALoss compares logits, but the {owner} has none. Pass Outputs(logits=tensor)."
            )
        if not isinstance(scores, Tensor):
            raise TypeError(f"The {owner}'s class scores must be a tensor, got {type(scores).__name__}.")
        if scores.ndim != 4:
            raise ValueError(f"The {owner}'s class scores must have shape (B, P, H, W), got {tuple(scores.shape)}.")
        maps.append(scores)
    if maps[0].shape[1] != maps[1].shape[1]:
        raise ValueError(
            f"The student scores {maps[0].shape[1]} classes and the teacher {maps[1].shape[1]}. Both must have "
            "the same."
        )
    x, y = feature_pairs([maps[0]], [maps[1]], "SegmentationCKALoss")[0]
    return x, resized(y, x.shape[2], x.shape[3])
