"""CKA of the class-score maps of segmenters as a loss, without a Gram matrix over pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...estimators.alignment import cka_of_features
from ...estimators.kernels import Linear
from ...estimators.validation import check_estimator
from .checks import check_classes, check_defined, check_samples, feature_pairs, floating_logits, unit_rows
from .contract import DistillationLoss, Outputs
from .gather import gathered
from .patches import resized
from .uncentred import uncentred_cka
from .weight_schedules import Weight

__all__ = ["SegmentationCKALoss"]


class SegmentationCKALoss(DistillationLoss):
    """1 - CKA of class-score maps (B, P, H, W): intra and inter, weighted and added.

    relation    intra aligns             inter aligns
    "pixel"     the B H W pixels         the P classes           LCKA with every pixel as a sample
    "sample"    the B images             the P H W scores        the paper's, for large batches

    Parameters
    ----------
    intra_weight, inter_weight : float or callable
        Weights of the two terms.
    relation : "pixel" or "sample", optional
        "pixel" by default, and "sample" with "released". "sample" needs many images: the centred CKA of two images is
        always 1.
    estimator : "biased" or "unbiased"
        As in `LogitCKALoss`.
    variant : "paper" or "released"
        "paper" centres, and scales the scores of each pixel (or image) and of each class to norm 1. "released" gives
        the value and gradient of the paper's code: minus the CKA of un-centred Gram matrices whose rows alone are
        scaled. There the inter term has the weight ``intra_weight``.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed.

    Raises
    ------
    ValueError
        If a weight is negative, the relation, estimator or variant unknown, or "released" is combined with relation
        "pixel" or the unbiased estimator.

    Notes
    -----
    Reads logits (B, P, H, W); the teacher's are resized to the student's size. The terms are "intra" and "inter",
    between 0 and their weight (biased); one with weight 0 is left out.

    A Gram matrix over pixels would have 2.7e11 entries at 512 x 1024. It is not formed: ||X'Y||^2, and its weighted
    form for "released", need products of size P x P or B x B only. Tap the scores before they are upsampled to the
    image: the upsampled ones cost more and add nothing.

    References
    ----------
    Zhou et al., IJCAI 2024; docs/paper.md, section 1 (segmentation, weights 10 and 10) and section 2 (departure 9).

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
        intra_weight: Weight = 10.0,
        inter_weight: Weight = 10.0,
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
        self.intra_weight = self.checked_weight("intra_weight", intra_weight)
        self.inter_weight = self.checked_weight("inter_weight", inter_weight)
        self.relation, self.estimator, self.variant, self.gather = relation, estimator, variant, gather

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "intra" and "inter"; one with weight 0 is left out."""
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
            terms["intra"] = self.weighted("intra_weight", self._distance(x, y, "score maps"))
        if self.inter_weight:
            check_classes(x.shape[1], self.estimator)
            weight = "intra_weight" if self.variant == "released" else "inter_weight"
            terms["inter"] = self.weighted(weight, self._distance(x.mT, y.mT, "transposed score maps"))
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
        """Settings, as ``repr`` shows them."""
        return (
            f"intra_weight={self.intra_weight}, inter_weight={self.inter_weight}, relation={self.relation!r}, "
            f"estimator={self.estimator!r}, variant={self.variant!r}, gather={self.gather}"
        )


def _score_maps(student: Tensor | None, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check both score maps; return them in one size and dtype, the teacher's detached."""
    maps = []
    for logits, owner in ((student, "student"), (teacher, "teacher")):
        scores = floating_logits(logits, owner, "SegmentationCKALoss")
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
