"""Pool an activation of any shape to features (samples, width), without padding.

Activations may be maps (n, c, h, w) with any number of spatial axes, square maps (n, h, h, c), tokens (n, t, d),
matrices (n, d) or scalars (n,). A mask (n, t) is 1 where a token is real and 0 where it is padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["POOLINGS", "Pooling", "check_pooling", "pool", "reads_positions"]

Pooling = str | Callable[[torch.Tensor], torch.Tensor]
"""Name of a pooling, or a function from an activation (n, ...) to features (m, d)."""

POOLINGS = {
    "auto": "flatten, or the mean over real tokens if the batch has an attention mask",
    "flatten": "all axes but the sample axis in one row; padded tokens count as 0",
    "mean": "mean over the positions of a map, or over real tokens",
    "spatial": "every position of a map is a sample",
    "all": "every real token is a sample",
    "cls": "the first real token",
    "last": "the last real token",
}


def check_pooling(pooling: Pooling) -> None:
    """Raise an error unless ``pooling`` is a known name or callable.

    Raises
    ------
    ValueError
        If it is an unknown name.
    TypeError
        If it is neither a string nor callable.
    """
    if callable(pooling):
        return
    if not isinstance(pooling, str):
        raise TypeError(f"`pooling` must be a name or a function of the activation, got {type(pooling).__name__}.")
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be a function or one of {', '.join(map(repr, POOLINGS))}, got {pooling!r}.")


def reads_positions(pooling: Pooling | None) -> bool:
    """Whether a pooling must know which axis of an activation holds the channels."""
    return isinstance(pooling, str) and pooling not in ("auto", "flatten")


def pool(
    activation: torch.Tensor,
    pooling: Pooling = "flatten",
    mask: torch.Tensor | None = None,
    channels: int | None = None,
    *,
    any_order: bool = False,
    by_product: bool = False,
) -> torch.Tensor:
    """Features of one layer from its activation.

    Parameters
    ----------
    activation : tensor (n, ...)
        Output of a layer, with samples on axis 0.
    pooling : str or callable
        One of ``POOLINGS``, or a function from the activation to a tensor (m, d).
    mask : tensor (n, t), optional
        1 for real tokens. It applies to activations of shape (n, t, ...) with three or more axes.
    channels : int, optional
        Axis of the channels, 1 or -1. When left out, three axes are tokens (n, t, d), and more are a map (n, c, h, w),
        or (n, h, h, c) if only that is square.
    any_order : bool
        Whether "flatten" may put the features into their order in memory, if that saves a copy.
    by_product : bool
        Whether "mean" may multiply with the mask on a CPU, ten times faster, where that is as accurate. To find out, a
        number is read, which no compiler can trace.

    Returns
    -------
    tensor (m, d)
        A view of the activation if possible. m is the number of positions or real tokens for "spatial" and "all", and
        n for the other names.

    Raises
    ------
    ValueError
        If the pooling does not fit the shape of the activation.

    Examples
    --------
    >>> pool(torch.zeros(8, 16, 4, 4), "mean").shape
    torch.Size([8, 16])
    """
    if callable(pooling):
        features = pooling(activation)
        if not isinstance(features, torch.Tensor) or features.ndim != 2:
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"the pooling function must return a tensor of shape (n, d), got {shape}")
        return features
    has_tokens = mask is not None and activation.ndim >= 3 and tuple(activation.shape[:2]) == tuple(mask.shape)
    if pooling == "auto":
        pooling = "mean" if has_tokens else "flatten"
    if activation.ndim < 3:
        if pooling in ("cls", "last", "all", "spatial") and activation.ndim < 2:
            raise ValueError(f"pooling {pooling!r} needs an activation with positions, got {tuple(activation.shape)}")
        return activation.reshape(activation.shape[0], -1)
    real = mask.to(device=activation.device, dtype=torch.bool) if mask is not None and has_tokens else None
    if real is not None:
        activation = activation.flatten(2)  # all heads of a token are its features
    if pooling == "flatten":
        if real is not None:
            # Not a product with the mask: padding may hold NaN. Not torch.where with a number: it waits for the GPU.
            activation = activation.masked_fill(~real[:, :, None], 0.0)
        if any_order and not activation.is_contiguous():
            activation = _in_memory_order(activation)
        return activation.reshape(activation.shape[0], -1)
    if activation.ndim == 3:
        if (
            by_product
            and pooling == "mean"
            and real is not None
            and (mean := _mean_by_product(activation, real)) is not None
        ):
            return mean
        turned = channels == 1 and real is None
        return _pool_tokens(activation.transpose(1, 2) if turned else activation, pooling, real)
    return _pool_map(activation, pooling, channels)


def _in_memory_order(activation: torch.Tensor) -> torch.Tensor:
    """The activation (n, ...) with its axes but the first in the order of memory: channels last, for example."""
    strides = activation.stride()
    return activation.permute(0, *sorted(range(1, activation.ndim), key=lambda axis: -strides[axis]))


def _mean(activation: torch.Tensor, axis: int | tuple[int, ...]) -> torch.Tensor:
    """Mean in float32 or better: a mean rounded to half precision would change CKA by 1e-3."""
    return activation.mean(axis, dtype=torch.promote_types(activation.dtype, torch.float32))


def _pool_tokens(tokens: torch.Tensor, pooling: str, real: torch.Tensor | None) -> torch.Tensor:
    if pooling in ("spatial", "all"):
        flat = tokens.reshape(-1, tokens.shape[-1])
        return flat if real is None else flat[real.reshape(-1)]
    if real is None:
        if pooling == "mean":
            return _mean(tokens, 1)
        return tokens[:, 0] if pooling == "cls" else tokens[:, -1]
    # The first or last real token, with padding on either side.
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(real)
    last = pooling == "last"
    places = places.masked_fill(~real, -1 if last else tokens.shape[1])
    place = (places.amax(1) if last else places.amin(1)) % tokens.shape[1]
    found = tokens.take_along_dim(place[:, None, None], 1)
    if pooling == "mean":
        # The mean of differences to the first real token: a constant layer stays exactly constant for any number of
        # tokens. Not a product with the mask: padding may hold NaN. A sample without real tokens gives NaN.
        apart = tokens.to(torch.promote_types(tokens.dtype, torch.float32)) - found
        return found[:, 0] + apart.masked_fill(~real[:, :, None], 0.0).sum(1) / real.sum(1, keepdim=True)
    return found[:, 0].masked_fill(~real.any(1, keepdim=True), torch.nan)


FAR_OFF = 100.0
"""Largest squared mean over squared spread of features for which ``_mean_by_product`` is accurate enough.

Rounding is then 1e-6 of the spread in each number, and averages out in a Gram matrix."""


def _mean_by_product(tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor | None:
    """Mean over real tokens as one product; None where that might be wrong.

    That is where padding holds NaN, where a sample has no token, and where the mean over samples is so far above their
    spread that rounding counts: equal samples of different lengths must give equal means.
    """
    if tokens.device.type != "cpu" or tokens.dtype not in (torch.float32, torch.float64):
        return None
    weights = real.to(tokens.dtype)
    weights /= weights.sum(1, keepdim=True)
    mean = torch.bmm(weights[:, None], tokens)[:, 0]
    centre = mean.mean(0)
    apart = torch.linalg.vector_norm(mean - centre) ** 2 / len(mean)
    return mean if bool(torch.linalg.vector_norm(centre) ** 2 <= FAR_OFF * apart) else None


def _pool_map(maps: torch.Tensor, pooling: str, channels: int | None) -> torch.Tensor:
    if channels is None and maps.ndim == 4 and maps.shape[1] == maps.shape[2] != maps.shape[3]:
        channels = -1  # (n, h, w, c), as in Swin; a square map shows which axes are spatial
    if channels == -1:
        maps = maps.movedim(-1, 1)
    if pooling == "mean":
        return _mean(maps, tuple(range(2, maps.ndim)))
    if pooling in ("spatial", "all"):
        return maps.flatten(2).transpose(1, 2).reshape(-1, maps.shape[1])
    raise ValueError(
        f"pooling {pooling!r} is for tokens (n, t, d), got a map of shape {tuple(maps.shape)}; "
        'use "flatten", "mean" or "spatial"'
    )
