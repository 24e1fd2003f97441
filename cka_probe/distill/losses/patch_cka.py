"""PCKA: CKA between patches of feature pyramids, as a loss.

Detectors train on few images at a time, too few for a Gram matrix over samples, so PCKA relates patches instead. The
alignment of un-centred patches starts at 0.86 to 0.99 for independent features (docs/paper.md, departure 11). So this
loss centres, takes smaller patches on coarse levels, and reports each value beside its chance level.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...estimators.validation import check_estimator
from .adapters import Adapters
from .alignments import inter_of_products, intra_of_products, of_stacks, value_and_chance
from .checks import check_levels, feature_pairs
from .contract import DistillationLoss, Outputs
from .gather import gathered
from .patches import RELATIONS, patch_products, patch_size, patch_stack, resized, stack_shape
from .weight_schedules import Weight

__all__ = ["PatchCKALoss"]

VARIANTS = ("paper", "released")


class PatchCKALoss(DistillationLoss):
    """PCKA: the weighted sum over pyramid levels of 1 - CKA between patches (intra) and between their entries (inter).

    Each map is resized to multiples of the patch and cut into patches. The loss takes the CKA of each slice (channel,
    sample, or place in the patch) and the mean over slices.

    Parameters
    ----------
    patch : int
        Side of the patches at the finest levels.
    relation : "patch", "sample" or "pixel"
        The slices are channels, samples, or places in a patch. The last two need no adapter if channels differ.
    intra_weight : float or callable
        Weight, for each level, of the alignment of Gram matrices over patches.
    inter_weight : float or callable
        Weight, for each level, of the alignment of Gram matrices over the entries of a patch.
    mimic_weight : float or callable
        Weight, for each level, of the mean squared difference of the maps themselves ("+ mimic").
    estimator : "biased" or "unbiased"
        The unbiased estimator has chance level 0 and needs 4 patches.
    variant : "paper" or "released"
        "released" gives the value and gradient of the paper's code: minus the un-centred alignment. There the inter
        term has the weight ``intra_weight`` (its own weight only switches it on).
    min_patches : int, optional
        The patch is halved until a level has at least this many patches. 16 by default; 1 for "released", which keeps
        the patch.
    gather : bool
        If true, the loss is that of the batch of all processes under torch.distributed, and the maps must have the same
        size in all of them. False by default, because detectors pad each batch to its own size and each process has
        many patches.

    Raises
    ------
    TypeError
        If ``patch`` or ``min_patches`` is no whole number.
    ValueError
        If a weight is negative, ``patch`` or ``min_patches`` below 1, the relation, estimator or variant unknown, or
        the estimator unbiased with "released".

    Notes
    -----
    Reads features: pyramid levels (B, C, H, W), pair by pair. The teacher's are resized to the student's size. The
    terms are "intra", "inter" and "mimic"; one with weight 0 is left out. Intra and inter lie between 0 and weight x
    levels (biased).

    A channel that is constant in the teacher is left out of the mean. One that is constant in the student alone counts
    as CKA 0 and has no gradient. A level that is constant in all slices of the teacher is a ValueError. A level with
    fewer than 3 patches (unbiased: 4) has no intra term, because the centred CKA of two patches is always 1; a warning
    says so once.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, section 4: intra 10 for
    detectors, inter 10 for two-stage detectors and GFL. docs/paper.md, section 1 (PCKA) and section 2 (departures 1, 3
    and 6 to 11).

    Examples
    --------
    >>> import torch
    >>> maps = [torch.randn(2, 8, 64, 80), torch.randn(2, 8, 32, 40)]
    >>> loss = PatchCKALoss()
    >>> abs(float(loss([2 * level + 1 for level in maps], maps))) < 1e-4
    True
    """

    reads = ("features",)

    def __init__(
        self,
        patch: int = 16,
        relation: str = "patch",
        intra_weight: Weight = 10.0,
        inter_weight: Weight = 0.0,
        mimic_weight: Weight = 0.0,
        *,
        estimator: str = "biased",
        variant: str = "paper",
        min_patches: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        if relation not in RELATIONS:
            raise ValueError(f"`relation` must be one of {', '.join(RELATIONS)}, got {relation!r}.")
        if variant not in VARIANTS:
            raise ValueError(f'`variant` must be "paper" or "released", got {variant!r}.')
        if variant == "released" and estimator != "biased":
            raise ValueError('The released code is not unbiased. Use variant="paper" with estimator="unbiased".')
        if min_patches is None:
            min_patches = 1 if variant == "released" else 16
        for name, value in (("patch", patch), ("min_patches", min_patches)):
            if not isinstance(value, int):
                raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.patch, self.relation, self.min_patches = patch, relation, min_patches
        self.intra_weight = self.checked_weight("intra_weight", intra_weight)
        self.inter_weight = self.checked_weight("inter_weight", inter_weight)
        self.mimic_weight = self.checked_weight("mimic_weight", mimic_weight)
        self.estimator, self.variant, self.gather = estimator, variant, gather
        self.adapters = Adapters(always=False)
        self._warned: set[int] = set()

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Make a learnable 1 x 1 map for each level whose channels differ. Call it before the optimiser is built.

        The relations "sample" and "pixel" without mimic do not compare channels and need no map.

        Parameters
        ----------
        student_features, teacher_features : sequence of Tensor (B, C, H, W)
            Pyramids of a sample batch.
        """
        pairs = feature_pairs(student_features, teacher_features, "PatchCKALoss")
        if self.relation == "patch" or self.mimic_weight:
            self.adapters.prepare([x for x, _ in pairs], [y for _, y in pairs])

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "intra", "inter" and "mimic"; one with weight 0 is left out."""
        pairs = gathered(feature_pairs(student.features, teacher.features, type(self).__name__), self.gather)
        values: dict[str, list[Tensor]] = {"intra": [], "inter": [], "mimic": []}
        levels = []
        for index, (x, y) in enumerate(pairs):
            x, y = self._fitted(index, x, y)
            if self.mimic_weight:
                values["mimic"].append(functional.mse_loss(x, resized(y, x.shape[2], x.shape[3])))
            for name, value in self._alignments(x, y, index).items():
                values[name].append(-value if self.variant == "released" else 1 - value)
                levels.append((value, x, y, index))
        check_levels(levels)
        # The released code multiplies inter by the intra weight (docs/paper.md, departure 3).
        inter = "intra_weight" if self.variant == "released" and self.inter_weight else "inter_weight"
        weights = {"intra": "intra_weight", "inter": inter, "mimic": "mimic_weight"}
        # A term that no level has is 0, with a gradient of 0.
        nothing = pairs[0][0].flatten()[:0].sum()
        return {
            name: self.weighted(weight, torch.stack(values[name] or [nothing]).sum().to(pairs[0][0].dtype))
            for name, weight in weights.items()
            if getattr(self, weight)
        }

    def _fitted(self, index: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Check that the pair are maps; map the student to the teacher's channels if channels are compared."""
        for level, owner in ((x, "student"), (y, "teacher")):
            if level.ndim != 4:
                raise ValueError(
                    f"PatchCKALoss cuts maps, but the {owner}'s level {index} has shape {tuple(level.shape)} instead "
                    "of (B, C, H, W). Tap the feature pyramid or a convolutional layer."
                )
        if x.shape[1] != y.shape[1] and (self.relation == "patch" or self.mimic_weight):
            x = self.adapters(index, x)
            if x.shape[1] != y.shape[1]:
                raise RuntimeError(f"`prepare` saw a teacher of other channels at level {index} than {y.shape[1]}.")
        return x, y

    def _cut(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Both maps at the student's size rounded up to multiples of the patch, and the side of the patch."""
        patch = patch_size(x.shape[2], x.shape[3], self.patch, self.min_patches)
        height, width = (-(-side // patch) * patch for side in x.shape[2:])
        return resized(x, height, width), resized(y, height, width), patch

    def _alignments(self, x: Tensor, y: Tensor, index: int) -> dict[str, Tensor]:
        """Mean CKA of the slices over patches ("intra") and over entries ("inter"), if wanted and defined."""
        height, width = x.shape[2:]
        x, y, patch = self._cut(x, y)
        _, n, m = stack_shape(x, patch, self.relation)
        least = 1 if self.variant == "released" else max(3, check_estimator(self.estimator))
        intra, inter = bool(self.intra_weight) and n >= least, bool(self.inter_weight) and m >= least
        if self.intra_weight and not intra and index not in self._warned:
            self._warned.add(index)
            warnings.warn(
                f"Level {index}, {height} x {width}, has {n} patches of {patch} x {patch}, but CKA over patches needs "
                f"{least}, so the level has no intra term. Use smaller patches, or leave the level out.",
                stacklevel=5,
            )
        values = {}
        if n > m or (inter and self.estimator == "unbiased"):
            a, b = (patch_stack(z, patch, self.relation) for z in (x, y))
            if intra:
                values["intra"] = of_stacks(a, b, self.estimator, self.variant)
            if inter:
                values["inter"] = of_stacks(a.mT, b.mT, self.estimator, self.variant)
        elif intra or inter:
            products = patch_products(x, y, patch, self.relation, centred=self.variant == "paper", inter=inter)
            if intra:
                values["intra"] = intra_of_products(products, self.estimator)
            if inter:
                values["inter"] = inter_of_products(products)
        return values

    def report(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Table of the levels: how each is cut, its alignment, and the chance level of this alignment.

        Parameters
        ----------
        student_features, teacher_features : sequence of Tensor (B, C, H, W)
            Pyramids of one batch.

        Returns
        -------
        list of dict
            One for each level: "level", "height", "width", "patch", "patches", "entries", and the means over slices
            "intra", "intra_chance", "inter", "inter_chance". Chance is the mean over all permutations of the teacher's
            patches (entries). NaN where it is not defined.

        References
        ----------
        docs/theory.md, section 1 (chance level).
        """
        rows = []
        pairs = feature_pairs(student_features, teacher_features, type(self).__name__)
        with torch.no_grad(), torch.autocast(pairs[0][0].device.type, enabled=False):
            for index, (x, y) in enumerate(pairs):
                x, y = self._fitted(index, x, y)
                row: dict[str, Any] = {"level": index, "height": x.shape[2], "width": x.shape[3]}
                x, y, row["patch"] = self._cut(x, y)
                stacks = [patch_stack(z, row["patch"], self.relation) for z in (x, y)]
                row |= {"patches": stacks[0].shape[1], "entries": stacks[0].shape[2]}
                for name, (a, b) in (("intra", stacks), ("inter", [z.mT for z in stacks])):
                    value, chance = value_and_chance(a, b, self.estimator, self.variant)
                    row |= {name: value, f"{name}_chance": chance}
                rows.append(row)
        return rows

    def extra_repr(self) -> str:
        """Settings, as ``repr`` shows them."""
        return (
            f"patch={self.patch}, relation={self.relation!r}, intra_weight={self.intra_weight}, "
            f"inter_weight={self.inter_weight}, mimic_weight={self.mimic_weight}, estimator={self.estimator!r}, "
            f"variant={self.variant!r}, min_patches={self.min_patches}, gather={self.gather}"
        )
