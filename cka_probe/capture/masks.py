"""Find out which attention mask of a batch belongs to which layer, and which axis of the layer holds the tokens.

A length alone proves nothing: source and target of a translation, words and image patches, tokens and attention heads
may be equally many. So before the first batch the model runs once on a few of its samples with fewer tokens. An axis
that becomes shorter holds the tokens of this mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .notes import listed
from .progress import Resumable
from .trial import Shape, ShapesOf, Trial, try_fewer_tokens

__all__ = ["MASKS", "Place", "TokenMasks"]

MASKS = (
    "attention_mask",
    "decoder_attention_mask",
    "src_key_padding_mask",
    "tgt_key_padding_mask",
    "key_padding_mask",
)
"""Keys of masks (n, t) in a batch. Those of torch's transformers have True where a token is padding."""

TARGET = ("decoder_", "tgt", "target")
"""Beginnings of the keys of the decoder's side."""

TOKEN_KEYS = frozenset(
    [
        "input_ids",
        "inputs_embeds",
        "input_values",
        "input_features",
        "token_type_ids",
        "position_ids",
        "bbox",
        "global_attention_mask",
        "special_tokens_mask",
        "langs",
    ]
)
"""Keys of a batch that usually have one entry for each token of ``attention_mask``."""


@dataclass(frozen=True)
class Place:
    """Where a layer has its tokens: key of the mask that belongs to it, and axis of its output."""

    key: str
    axis: int


class TokenMasks(Resumable):
    """The masks of the batches of one model, and where its layers have their tokens.

    Parameters
    ----------
    two_sided : bool
        Whether the model has an encoder and a decoder. Used only if the model does not run on fewer tokens.

    Attributes
    ----------
    masks : dict of str to tensor (n, t)
        The masks of the current batch.
    without : dict of str to None
        Layers (n, t, d) that no mask belongs to, although the batches have one.
    """

    lasting = ("without", "_trials", "_zero_is_real", "_places")

    def __init__(self, two_sided: bool = False) -> None:
        self.two_sided = two_sided
        self.masks: dict[str, torch.Tensor] = {}
        self.without: dict[str, None] = {}
        self._trials: dict[str, Trial | None] = {}
        self._zero_is_real: dict[str, bool] = {}
        self._places: dict[str, Place | None] = {}

    def start(self, batch: Any, shapes_of: ShapesOf) -> None:
        """Take the masks of a batch. At the first batch with a mask, run the model on fewer tokens."""
        self.masks = {key: mask for key in MASKS if (mask := self._real_tokens(batch, key)) is not None}
        for key, mask in self.masks.items():
            if key not in self._trials:
                self._trials[key] = try_fewer_tokens(batch, mask, _key_sets(batch, key, mask), shapes_of)

    def _real_tokens(self, batch: Any, key: str) -> torch.Tensor | None:
        """Mask (n, t) of a batch, nonzero where a token is real."""
        mapping = _mapping(batch)
        mask = mapping.get(key) if isinstance(mapping, Mapping) else None
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            return None
        # A mask that is added to the scores is 0 where a token is real. The first batch shows it, which has no 1.
        if key not in self._zero_is_real:
            added = mask.dtype.is_floating_point and not bool((mask == 1).any())
            self._zero_is_real[key] = added or key.endswith("key_padding_mask")
        return mask == 0 if self._zero_is_real[key] else mask

    def keeps_length(self, name: str, shape: Shape) -> bool:
        """Whether axis 0 of a layer is known to keep its length when the batch has fewer samples."""
        return any(trial is not None and trial.keeps_length(name, shape) for trial in self._trials.values())

    def place(self, name: str, shape: Shape) -> Place | None:
        """Where a layer has its tokens, decided in its first batch; None if no mask is known to belong to it."""
        if name in self._places:
            return self._places[name]
        found = [place for key in self.masks if (place := self._find(key, name, shape)) is not None]
        place = min(found, key=lambda one: one.axis, default=None)
        if place is None and len(shape) == 3 and shape[1] > 1:  # one position, as in generation, is no padding
            self.without[name] = None
        self._places[name] = place
        return place

    def _find(self, key: str, name: str, shape: Shape) -> Place | None:
        n, t = self.masks[key].shape
        axes = [axis for axis in range(1, len(shape)) if shape[axis] == t]
        if not axes or len(shape) < 3 or shape[0] != n:
            return None
        trial = self._trials[key]
        if trial is None:
            return self._by_position(key, name, axes)
        shorter = trial.shapes.get(name, ())
        if len(shorter) != len(shape):
            return None
        for axis in axes:
            # Models that pad to a multiple of a window keep more tokens than the batch has.
            if shorter[axis] == trial.tokens or (shorter[axis] < t and (n != t or shorter[axis] != trial.samples)):
                return Place(key, axis)
        return None

    def _by_position(self, key: str, name: str, axes: list[int]) -> Place | None:
        """The usual place of tokens, where the model could not be run on fewer tokens."""
        if self.two_sided or len(self.masks) > 1:
            in_decoder = any(part.startswith("decoder") for part in name.split("."))
            if in_decoder != key.startswith(TARGET):
                return None
        usual = [axis for axis in axes if axis in (1, 2)]
        return Place(key, usual[0]) if len(usual) == 1 else None

    def notes(self, layers: Sequence[str]) -> Iterator[str]:
        """Sentences on what the masks were not used for, or used without proof, among these layers."""
        without = [name for name in layers if name in self.without]
        if without:
            keys = " and the ".join(key for key in self._trials if key)
            yield (
                f"{listed(without)} {'was' if len(without) == 1 else 'were'} pooled without a mask, because no axis of "
                f"the output follows the tokens of the {keys}. All positions count, also those of padding, if any."
            )
        for key, trial in self._trials.items():
            placed = [name for name in layers if (place := self._places.get(name)) is not None and place.key == key]
            if key and trial is None and placed:
                yield (
                    f"the {key} was matched to the layers by its length, because the model did not run on the batch "
                    "with fewer tokens. If another axis has this length by chance, pass pooling= as a function."
                )


def _mapping(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def _key_sets(batch: Any, key: str, mask: torch.Tensor) -> list[set[str]]:
    """Keys of the tensors that may have one entry for each token of the mask: the surest set first."""
    long = {
        name
        for name, value in _mapping(batch).items()
        if isinstance(value, torch.Tensor) and value.ndim in (2, 3) and value.shape[:2] == mask.shape
    }
    target = {name for name in long if name.startswith(TARGET)}
    if key.startswith(TARGET):
        found = [target, target | (long & {"labels"})]
    else:
        own = long - target
        usual = own & (TOKEN_KEYS | {key})
        found = [usual] * (len(usual) > 1) + [own - {"labels"}, own]
    return [keys for place, keys in enumerate(found) if keys not in found[:place]]
