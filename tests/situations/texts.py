"""Batches of token ids with padding, and the features of layers over real tokens, for situations with text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from situation import flattened, mean_over_tokens

__all__ = ["SIZES", "masks", "over_tokens", "sentences", "token_ids"]

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 90}
"""A transformer that runs in milliseconds, in the words of most configurations of transformers."""


def token_ids(n: int, length: int, seed: int) -> torch.Tensor:
    """Token ids (n, length) from 3 to 89; the smaller ids are special tokens."""
    return torch.randint(3, 90, (n, length), generator=torch.Generator().manual_seed(seed))


def masks(n: int, length: int, seed: int, *, left: bool = False, shortest: int = 2) -> torch.Tensor:
    """Attention mask (n, length) of samples with random lengths; the longest fills its row."""
    lengths = torch.randint(shortest, length + 1, (n,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = length
    real = (torch.arange(length)[None] < lengths[:, None]).long()
    return real.flip(1) if left else real


def sentences(
    n: int = 7, lengths: tuple[int, ...] = (9, 6), *, left: bool = False, seed: int = 2
) -> list[dict[str, torch.Tensor]]:
    """Batches with the keys ``input_ids`` (0 where padded) and ``attention_mask``, one for each of ``lengths``."""
    found = []
    for index, length in enumerate(lengths):
        mask = masks(n, length, seed + index, left=left)
        found.append({"input_ids": token_ids(n, length, seed + 50 + index) * mask, "attention_mask": mask})
    return found


def over_tokens(
    mask_of: str | Callable[[str], str | None] = "attention_mask",
) -> Callable[[str, torch.Tensor, Any], torch.Tensor]:
    """Features for ``check``: the mean over real tokens; all numbers of a sample if the layer has no tokens.

    Parameters
    ----------
    mask_of : str or callable
        Key of the mask in the batch; or a function from the layer to this key, None for layers that the mask does not
        belong to.
    """

    def features(row: str, output: torch.Tensor, batch: Any) -> torch.Tensor:
        key = mask_of(row) if callable(mask_of) else mask_of
        if key is None or output.ndim < 3:
            return flattened(row, output, batch)
        return mean_over_tokens(batch[key], output)

    return features
