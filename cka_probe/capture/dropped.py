"""Notes on the parts of a batch that a model is not given, unless they are plainly targets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .batches import accepted, passed_part
from .masks import MASKS
from .trees import shape_text, tensors

__all__ = ["notes_on_dropped", "notes_on_withheld"]

_MASK = re.compile(r"(^|_)(masks?|pad|padding)(_|$)", re.IGNORECASE)
_LENGTH = re.compile(r"(^|_)(len|lens|lengths?|t|time|timesteps?|sigmas?)$", re.IGNORECASE)
_TARGET = re.compile(
    r"(^|_)(labels?|targets?|class(es)?|gts?|ground_truth|annotations?|answers?|scores?)(_|$)|^(y|ys)$|^label|^target",
    re.IGNORECASE,
)
_INPUT = re.compile(
    r"^(decoder_|encoder_)?(input|inputs|position|token_type|pixel)(_|$)|_embeds$|_states$", re.IGNORECASE
)
_BOOKKEEPING = frozenset(
    ["id", "ids", "idx", "idxs", "index", "indices", "key", "keys", "uid", "sample_id", "sample_idx", "path", "paths"]
    + ["special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "num_truncated_tokens"]
    + ["overflowing_tokens"]
)
"""Keys that tell of a sample but are not meant for a network; from a tokenizer too."""


def notes_on_dropped(name: str, model: nn.Module, batch: Any) -> list[str]:
    """Notes on the parts and keys of a batch that ``call_model`` does not pass to the model.

    No note is given for what is plainly a target or bookkeeping: one number for each sample, a key such as "labels",
    the second of two parts unless it looks like a mask or the forward has another use for it.

    Parameters
    ----------
    name : str
        Name of the model in the notes.
    model : torch.nn.Module
        The model.
    batch : any
        The first batch, with tensors.

    Returns
    -------
    list of str
        One note for the parts of a tuple, one for the keys of a mapping.
    """
    inputs = passed_part(batch)
    notes = []
    if isinstance(inputs, Mapping) and _decoder_reads_labels(model, inputs):
        notes.append(
            f"{name} was not given 'labels', of which it makes the input of its decoder. The layers of the decoder did "
            "not see the targets. Give the batches 'decoder_input_ids', or pass forward=lambda model, batch: "
            "model(**batch)"
        )
    if isinstance(inputs, Mapping) and (keys := _dropped_keys(model, inputs)):
        many = len(keys) > 1
        text = (
            f"{name} was not given {', '.join(map(repr, keys))} of the batch: its forward has no "
            f"argument{'s' * many} of {'these names' if many else 'this name'}"
        )
        if any(_MASK.search(str(key)) for key in keys):
            text += f". {_about_masks(model, accepted(model, inputs), pooled=not set(MASKS).isdisjoint(inputs))}"
        else:
            text += (
                ". If it needs them, rename the keys or pass forward="
                if many
                else (". If it needs it, rename the key or pass forward=")
            )
        notes.append(text)
    if inputs is not batch and (parts := _dropped_parts(model, inputs, batch)):
        listed = " and ".join(f"part {place + 1}, of shape {shape_text(batch[place])}" for place in parts)
        text = f"{name} was given only the first of the {len(batch)} parts of each batch, and not {listed}"
        if any(_looks_like_mask(inputs, batch[place]) for place in parts):
            text += f", which looks like a mask. {_about_masks(model, ())}"
        else:
            text += ". To use more, let the batches be ((first, second), target) or dicts, or pass forward="
        notes.append(text)
    return notes


def notes_on_withheld(model: nn.Module, batch: Any) -> list[str]:
    """Hint for an error inside a network: the keys of the batch, labels too, that ``call_model`` did not pass to it."""
    inputs = passed_part(batch)
    if not isinstance(inputs, Mapping):
        return []
    used = accepted(model, inputs)
    withheld = [repr(key) for key in inputs if key not in used]
    if not withheld:
        return []
    return [
        f"It was not given {', '.join(withheld)} of the batch. If it needs more than it was given, pass "
        "forward=lambda model, batch: model(...)."
    ]


def _decoder_reads_labels(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether labels are the only input that a batch has for a decoder, as those of a collator for seq2seq."""
    given = ("decoder_input_ids", "decoder_inputs_embeds")
    return "labels" in inputs and given[0] in _arguments(model) and not any(inputs.get(k) is not None for k in given)


def _about_masks(model: nn.Module, given: Any, pooled: bool = False) -> str:
    """What to do so that a mask is used; ``pooled`` if the pooling uses it already."""
    free = [name for name in _arguments(model) if _MASK.search(name) and name not in given]
    if free:
        known = "The forward has " + " and ".join(map(repr, free[:3]))
    else:
        known = "Common names are 'mask', 'padding_mask', 'src_key_padding_mask' and 'attention_mask'"
    takes = "the network takes" if pooled else "the network and the pooling take"
    reads = (
        "" if pooled else "; the pooling reads 'attention_mask' (1 is real) and 'src_key_padding_mask' (1 is padding)"
    )
    return (
        f"Without it {takes} padded tokens for real ones. Let the batches be dicts whose keys are the arguments of the "
        f"forward, or pass forward=. {known}{reads}"
    )


def _arguments(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The named arguments of the forward."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # not written in Python
        return {}
    return {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _dropped_keys(model: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    used = accepted(model, inputs)
    if _free_masks(model, used) and not any(_MASK.search(str(key)) for key in used if key in _arguments(model)):
        # Among **kwargs a mask with a wrong name is accepted and does nothing.
        used = {key: value for key, value in used.items() if key in _arguments(model) or not _MASK.search(str(key))}
    largest = max((tensor for tensor in tensors(inputs)), key=lambda tensor: tensor.ndim, default=None)
    found = []
    for key, value in inputs.items():
        name = str(key)
        if key in used or name.lower() in _BOOKKEEPING or next(tensors(value), None) is None:
            continue
        if _TARGET.search(name) and not _INPUT.search(name):
            continue
        if _MASK.search(name):
            if not (_is_map_beside(largest, value) and not any("att" not in free for free in _free_masks(model, used))):
                found.append(name)
        elif not _is_one_number_each(value) or _LENGTH.search(name) or _INPUT.search(name):
            found += [] if _is_constant(value) else [name]
    return found


def _is_one_number_each(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_nested:
        return False
    return value.ndim <= 1 or value.shape[1:].numel() == 1


def _free_masks(model: nn.Module, given: Any) -> list[str]:
    return [name for name in _arguments(model) if _MASK.search(name) and name not in given]


def _is_map_beside(image: torch.Tensor | None, value: Any) -> bool:
    """Whether a tensor has one number for each pixel of the image, as the target of a segmentation has."""
    if image is None or not isinstance(value, torch.Tensor) or image.is_nested or value.is_nested:
        return False
    if image.ndim < 4 or value.ndim < 3:
        return False
    return value.shape[-2:] == image.shape[-2:]


def _is_constant(value: Any) -> bool:
    """Whether a tensor holds one number only, such as the token types of a single sentence."""
    if not isinstance(value, torch.Tensor) or value.is_nested or value.layout is not torch.strided or not value.numel():
        return False
    return bool((value == value.reshape(-1)[0]).all())


def _dropped_parts(model: nn.Module, inputs: Any, batch: Any) -> list[int]:
    """Places of the parts of a tuple that are not plainly targets."""
    parts = {place: part for place, part in enumerate(batch) if place and isinstance(part, torch.Tensor) and part.ndim}
    if len(batch) == 2:
        return [place for place, part in parts.items() if not _is_target(model, inputs, part)]
    # One part of several is the target: the first with one number for each sample, or else the last.
    single = [place for place, part in parts.items() if _is_one_number_each(part)]
    target = single[0] if single else max(parts, default=None)
    return [
        place for place, part in parts.items() if place != target or (part.ndim > 1 and _looks_like_mask(inputs, part))
    ]


def _is_target(model: nn.Module, inputs: Any, part: torch.Tensor) -> bool:
    """Whether the second of two parts is plainly a target."""
    if part.ndim > 1 and _looks_like_mask(inputs, part):
        return False
    use = _second_use(model, inputs)
    if use is None:
        return True
    if _MASK.search(use):
        return not (part.ndim > 1 and "att" not in use and _is_binary(part))
    if _is_one_number_each(part):
        return _LENGTH.search(use) is None
    return not _INPUT.search(use) and not use.startswith(("cond", "context"))


def _second_use(model: nn.Module, inputs: Any) -> str | None:
    """Name of the next argument of the forward, if it may be given a tensor."""
    given = len(inputs) if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence) else 1
    if isinstance(inputs, Mapping):
        return None
    following = list(_arguments(model).values())[given : given + 1]
    return next((p.name for p in following if p.default in (None, p.empty) and not _TARGET.search(p.name)), None)


def _looks_like_mask(inputs: Any, part: Any) -> bool:
    """Whether a tensor has one bit for each token of the input (n, t) or (n, t, d), or for each pair of tokens."""
    if not isinstance(inputs, torch.Tensor) or not isinstance(part, torch.Tensor) or inputs.ndim not in (2, 3):
        return False
    if part.is_nested or inputs.is_nested or part.layout is not torch.strided:
        return False
    n, t = inputs.shape[:2]
    of_pairs = part.ndim in (3, 4) and part.shape[0] == n and tuple(part.shape[-2:]) == (t, t)
    if tuple(part.shape) != (n, t) and not of_pairs:
        return False
    return _is_binary(part) and (of_pairs or not _is_one_hot(part))


def _is_binary(part: torch.Tensor) -> bool:
    """Whether all numbers are 0 and 1, or 0 and -inf."""
    if part.dtype is torch.bool:
        return True
    return bool(((part == 0) | (part == 1)).all()) or bool(((part == 0) | (part == -torch.inf)).all())


def _is_one_hot(part: torch.Tensor) -> bool:
    return part.shape[1] > 1 and bool((part.sum(1) == 1).all())
