"""Find out which attention mask of a batch belongs to which layer, and which axis of the layer holds the tokens.

A length alone proves nothing: source and target of a translation, words and image patches, tokens and attention heads
may be equally many. So before the first batch the model runs once on a few of its samples with fewer tokens. An axis
that becomes shorter holds the tokens of this mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .hooks import CaptureError
from .notes import listed
from .trees import alike, parts

__all__ = ["MASKS", "Place", "TokenMasks", "Trial", "fewer_samples"]

MASKS = ("attention_mask", "decoder_attention_mask")
"""Keys of masks (n, t) in a batch."""

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

FEW = 2
"""Number of samples of the trial run."""


@dataclass(frozen=True)
class Trial:
    """The shapes of all layers on a smaller batch.

    Attributes
    ----------
    samples, of : int
        Number of samples of the smaller batch, and of the whole one.
    tokens : int
        Number of its tokens.
    shapes : dict of str to tuple of int
        Shape of the output of each call.
    """

    samples: int
    of: int
    tokens: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Where a layer has its tokens: key of the mask that belongs to it, and axis of its output."""

    key: str
    axis: int


ShapesOf = Callable[[Any, int], Mapping[str, tuple[int, ...]]]
"""Runs the model on a batch of that many samples and returns the shape of each call's output."""


class TokenMasks:
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

    def __init__(self, two_sided: bool = False) -> None:
        self.two_sided = two_sided
        self.masks: dict[str, torch.Tensor] = {}
        self.without: dict[str, None] = {}
        self._trials: dict[str, Trial | None] = {}
        self._places: dict[str, Place | None] = {}

    def start(self, batch: Any, shapes_of: ShapesOf) -> None:
        """Take the masks of a batch. At the first batch with a mask, run the model on fewer tokens."""
        self.masks = {key: mask for key in MASKS if (mask := _mask(batch, key)) is not None}
        for key, mask in self.masks.items():
            if key not in self._trials:
                self._trials[key] = _trial(batch, key, mask, shapes_of)

    def try_fewer_samples(self, batch: Any, samples: int | None, shapes_of: ShapesOf, axis: int = 0) -> None:
        """Run the model on a few samples of a batch without masks, for ``follows_samples``."""
        if samples is None or samples <= FEW:
            return
        shapes = _shapes(fewer_samples(batch, samples, FEW, axis), FEW, samples, shapes_of)
        self._trials[""] = None if shapes is None else Trial(FEW, samples, 0, shapes)

    def follows_samples(self, name: str, shape: tuple[int, ...]) -> bool:
        """False if axis 0 of a layer is known to keep its length when the batch has fewer samples."""
        for trial in self._trials.values():
            before = () if trial is None else trial.shapes.get(name, ())
            if trial is not None and len(before) == len(shape) and trial.samples < trial.of == before[0] == shape[0]:
                return False
        return True

    def place(self, name: str, shape: tuple[int, ...]) -> Place | None:
        """Where a layer has its tokens, decided in its first batch; None if no mask is known to belong to it."""
        if name in self._places:
            return self._places[name]
        found = [place for key in self.masks if (place := self._find(key, name, shape)) is not None]
        place = min(found, key=lambda one: one.axis, default=None)
        if place is None and len(shape) == 3:
            self.without[name] = None
        self._places[name] = place
        return place

    def _find(self, key: str, name: str, shape: tuple[int, ...]) -> Place | None:
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
            if in_decoder != (key == "decoder_attention_mask"):
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
                f"the output follows the tokens of the {keys}. All positions count, those of padding too."
            )
        for key, trial in self._trials.items():
            placed = [name for name in layers if (place := self._places.get(name)) is not None and place.key == key]
            if key and trial is None and placed:
                yield (
                    f"the {key} was matched to the layers by its length, because the model did not run on the batch "
                    "with fewer tokens. If another axis has this length by chance, pass pooling= as a function."
                )


def _mask(batch: Any, key: str) -> torch.Tensor | None:
    mapping = batch[0] if isinstance(batch, tuple | list) and batch else batch
    mask = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def fewer_samples(tree: Any, samples: int, few: int, axis: int = 0) -> Any:
    """Copy of a batch with the first ``few`` of its samples; what has no axis of that length is kept."""
    if isinstance(tree, torch.Tensor):
        fits = tree.ndim > axis and tree.shape[axis] == samples
        return (tree.narrow(axis, 0, few) if fits else tree).clone()
    inside = parts(tree)
    if inside is None:
        return tree
    if isinstance(tree, list) and len(tree) == samples and not isinstance(tree[0], torch.Tensor):
        return tree[:few]
    return alike(tree, [fewer_samples(part, samples, few, axis) for part in inside])


def _trial(batch: Any, key: str, mask: torch.Tensor, shapes_of: ShapesOf) -> Trial | None:
    """Shapes of the layers on fewer tokens; None if the model does not run on them."""
    n, t = mask.shape
    for keys in _key_sets(batch, key, mask):
        for few, tokens in ((FEW, t // 2), (FEW, t - 1), (n, t // 2), (n, t - 1)):
            few = min(few + (few == tokens), n)
            if 0 < tokens < t:
                shapes = _shapes(_shorter(fewer_samples(batch, n, few), keys, tokens), few, n, shapes_of)
                if shapes is not None:
                    return Trial(few, n, tokens, shapes)
    return None


def _shapes(batch: Any, few: int, samples: int, shapes_of: ShapesOf) -> Mapping[str, tuple[int, ...]] | None:
    """Shapes of the layers on a batch of a trial; None if the model does not run on it, or not on its samples alone."""
    try:
        shapes = shapes_of(batch, few)
    except CaptureError:
        raise
    except Exception:  # the model has its own demands on a batch, and may raise whatever it likes
        return None
    fits = few == samples or any(shape[:1] == (few,) for shape in shapes.values())
    return shapes if shapes and fits else None


def _key_sets(batch: Any, key: str, mask: torch.Tensor) -> list[set[str]]:
    """Keys of the tensors that may have one entry for each token of the mask: the surest set first."""
    mapping = batch[0] if isinstance(batch, tuple | list) else batch
    long = {
        name
        for name, value in mapping.items()
        if isinstance(value, torch.Tensor) and value.ndim in (2, 3) and value.shape[:2] == mask.shape
    }
    decoder = {name for name in long if name.startswith("decoder_")}
    if key == "decoder_attention_mask":
        found = [decoder, decoder | (long & {"labels"})]
    else:
        own = long - decoder
        usual = own & (TOKEN_KEYS | {key})
        found = [usual] * (len(usual) > 1) + [own - {"labels"}, own]
    return [keys for place, keys in enumerate(found) if keys not in found[:place]]


def _shorter(batch: Any, keys: set[str], tokens: int) -> Any:
    if isinstance(batch, tuple | list):
        return alike(batch, [_shorter(batch[0], keys, tokens), *batch[1:]])
    return alike(batch, [value[:, :tokens] if name in keys else value for name, value in batch.items()])
