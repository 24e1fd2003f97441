"""PCKA of feature pyramids.

Detectors train on few images at a time, so that a Gram matrix over samples says little; PCKA relates patches instead.
The alignment of un-centred patches starts at 0.86 to 0.99 for independent features (PAPER.md, departure 11), hence the
centring here, smaller patches on coarse levels, and `PatchCKALoss.report`, which sets each value beside its chance
level.
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
from .checks import check_levels
from .contract import DistillationLoss, Outputs, feature_pairs, gathered, not_negative
from .patches import RELATIONS, patch_products, patch_size, patch_stack, resized, stack_shape

__all__ = ["PatchCKALoss"]

VARIANTS = ("paper", "released")


class PatchCKALoss(DistillationLoss):
    """PCKA: the weighted sum over pyramid levels of 1 - CKA between patches (intra) and between their entries (inter).

    Each map is resized to multiples of the patch and cut; the CKA of each slice (channel, sample, or place in the
    patch) is taken, and the mean over slices.

    Parameters
    ----------
    patch : int
        Side of the patches at the finest levels.
    relation : "patch", "sample" or "pixel"
        Whether the mean runs over channels, over samples, or over the places of a patch. The last two need no adapter
        where channels differ.
    intra_weight : float
        Of the alignment of n x n Gram matrices over patches, for each level.
    inter_weight : float
        Of the alignment of Gram matrices over the entries of a patch, for each level.
    mimic_weight : float
        Of the mean squared difference of the maps themselves, for each level ("+ mimic").
    estimator : "biased" or "unbiased"
        The unbiased has chance level 0 and needs 4 patches.
    variant : "paper" or "released"
        "released" gives the value and gradient of the paper's code: minus the un-centred alignment, inter weighted by
        ``intra_weight`` (its own weight only switches it on).
    min_patches : int, optional
        Patches are halved until a level has so many; 16 when None, and 1 for "released", which keeps the patch.
    gather : bool
        Whether the batch of all processes is gathered under torch.distributed; maps must then have one size in all of
        them. Off, because detectors pad each batch to a size of its own, and patches are many in each process.

    Raises
    ------
    TypeError
        If ``patch`` or ``min_patches`` is no whole number.
    ValueError
        For a negative weight, a patch or minimum below 1, an unknown relation, estimator or variant, or the unbiased
        estimator with "released".

    Notes
    -----
    A channel that is constant in the teacher teaches nothing and is left out of the mean; one that is constant in the
    student alone counts as CKA 0 and has no gradient. A level with fewer than 3 patches (4, unbiased) has no intra
    term, since the centred CKA of two is 1 whatever they are; a warning says so once.

    References
    ----------
    Zhou et al., Rethinking Centered Kernel Alignment in Knowledge Distillation, IJCAI 2024, section 4; PAPER.md, PCKA,
    departures 1, 3 and 6 to 11. Weights there: intra 10 for detectors, inter 10 for two-stage detectors and GFL.

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
        intra_weight: float = 10.0,
        inter_weight: float = 0.0,
        mimic_weight: float = 0.0,
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
        self.intra_weight = not_negative("intra_weight", intra_weight)
        self.inter_weight = not_negative("inter_weight", inter_weight)
        self.mimic_weight = not_negative("mimic_weight", mimic_weight)
        self.estimator, self.variant, self.gather = estimator, variant, gather
        self.adapters = Adapters(always=False)
        self._warned: set[int] = set()

    def prepare(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
        """Makes a learnable 1x1 map for each level whose channels differ; called once, before the optimiser is built.

        Nothing is made where channels agree, or where nothing compares them one by one (relation "sample" or "pixel"
        without mimic).

        Parameters
        ----------
        student_features, teacher_features : sequence of Tensor (B, C, H, W)
            Pyramids of a sample batch.
        """
        pairs = feature_pairs(student_features, teacher_features, "PatchCKALoss")
        if self.relation == "patch" or self.mimic_weight:
            self.adapters.prepare([x for x, _ in pairs], [y for _, y in pairs])

    def compute_terms(self, student: Outputs, teacher: Outputs, _target: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms "intra", "inter" and "mimic"; one with weight 0 is left out.

        Parameters
        ----------
        student_logits, teacher_logits, target
            Not used.
        student_features, teacher_features : sequence of Tensor (B, C, H, W)
            Pyramid levels, pair by pair. The teacher's are resized to the student's size where they differ.

        Returns
        -------
        dict of str to Tensor
            Scalars; intra and inter between 0 and weight x levels (biased).

        Raises
        ------
        TypeError
            If a level is no floating tensor.
        ValueError
            If the pyramids do not fit, or the CKA of a level is not defined: NaN, infinity, or a teacher that is
            constant in all channels. The message names the level.
        RuntimeError
            If channels differ, and `prepare` has not been called.
        """
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
        # Departure 3: the released code weighs inter by the intra weight.
        inter_weight = self.intra_weight if self.variant == "released" and self.inter_weight else self.inter_weight
        weights = {"intra": self.intra_weight, "inter": inter_weight, "mimic": self.mimic_weight}
        # Without any level that has the term: 0, which still has a (zero) gradient.
        nothing = pairs[0][0].flatten()[:0].sum()
        return {
            name: torch.stack(values[name] or [nothing]).sum().to(pairs[0][0].dtype) * weight
            for name, weight in weights.items()
            if weight
        }

    def _fitted(self, index: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The pair as maps of equal channels, where channels are compared."""
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
        """Both maps at the student's size, rounded up to multiples of the patch, and the patch."""
        patch = patch_size(x.shape[2], x.shape[3], self.patch, self.min_patches)
        height, width = (-(-side // patch) * patch for side in x.shape[2:])
        return resized(x, height, width), resized(y, height, width), patch

    def _alignments(self, x: Tensor, y: Tensor, index: int) -> dict[str, Tensor]:
        """The mean CKA of the slices over patches, and over entries, where wanted and possible."""
        height, width = x.shape[2:]
        x, y, patch = self._cut(x, y)
        _, n, m = stack_shape(x, patch, self.relation)
        least = 1 if self.variant == "released" else max(3, check_estimator(self.estimator))
        intra, inter = bool(self.intra_weight) and n >= least, bool(self.inter_weight) and m >= least
        if self.intra_weight and not intra and index not in self._warned:
            self._warned.add(index)
            warnings.warn(
                f"Level {index}, {height} x {width}, has {n} patches of {patch} x {patch}, and CKA over patches needs "
                f"{least}: the level has no intra term. Use smaller patches, or leave it out.",
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
        """How each level was cut, its alignment, and the alignment that unrelated patches of this kind would have.

        Parameters
        ----------
        student_features, teacher_features : sequence of Tensor (B, C, H, W)
            Pyramids of one batch.

        Returns
        -------
        list of dict
            One a level, for a data frame: level, height, width, patch, patches, entries, then cka and chance for
            "intra" and "inter": means over slices, where chance is the mean over all orders of the teacher's patches
            (entries). NaN where not defined.

        References
        ----------
        MATH 1 (the floor of biased CKA), without centring too.
        """
        rows = []
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for index, (x, y) in enumerate(feature_pairs(student_features, teacher_features, type(self).__name__)):
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
        """The settings, as they are given."""
        return (
            f"patch={self.patch}, relation={self.relation!r}, intra_weight={self.intra_weight}, "
            f"inter_weight={self.inter_weight}, mimic_weight={self.mimic_weight}, estimator={self.estimator!r}, "
            f"variant={self.variant!r}, min_patches={self.min_patches}, gather={self.gather}"
        )
