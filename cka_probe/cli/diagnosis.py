"""Why a network does not run on the given data, and on what it does run: found by trying, after a failure only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["explained", "raised_in_forward"]

SIZES = (28, 32, 48, 64, 75, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
"""Heights and widths to try."""


def raised_in_forward(error: BaseException) -> bool:
    """Whether an error comes from the forward pass of a network, and not from our checks before it.

    Parameters
    ----------
    error : Exception
        The error; those that it replaced are searched too.
    """
    seen: BaseException | None = error
    while seen is not None:
        trace = seen.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_name == "_call_impl":  # of torch.nn.Module
                return True
            trace = trace.tb_next
        seen = seen.__cause__ or seen.__context__
    return False


def explained(networks: Mapping[str, nn.Module], batches: Iterable[Any], data: str) -> ValueError | None:
    """An error that says which network does not run on the data and on what it runs; None if all run.

    Parameters
    ----------
    networks : mapping of str to torch.nn.Module
        The networks by the texts that name them.
    batches : iterable of batches
        The data; four samples of the first batch are tried.
    data : str
        The option that names the data, as it was given.
    """
    batch = next(iter(batches))
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    for name, model in networks.items():
        error = _fails(model, inputs[:4])
        if error is not None:
            text = (str(error).strip() or "no further information").splitlines()[0].rstrip(".")
            return ValueError(
                f"{name} ({type(model).__name__}) does not run on batches of shape {tuple(inputs.shape)} from {data}: "
                f"{type(error).__name__}: {text[:300]}. {_advice(name, model, inputs, data)}"
            )
    return None


def _fails(model: nn.Module, inputs: torch.Tensor) -> Exception | None:
    """What the forward raises; None if it runs."""
    from ..capture.batches import call_model
    from ..capture.state import borrowed

    try:
        with borrowed([model]):
            call_model(model, inputs)
    except Exception as error:
        return error
    return None


def _advice(name: str, model: nn.Module, inputs: torch.Tensor, data: str) -> str:
    """A sentence about the nearest input on which the network runs."""
    if inputs.dtype != torch.float32 and _fails(model, inputs[:4].float()) is None:
        return f"It runs on float32, but the data are {str(inputs.dtype).removeprefix('torch.')}: convert them."
    if inputs.ndim == 4:
        if _fails(model, inputs[:4].float().permute(0, 3, 1, 2)) is None:
            return "It runs on axes in the order (samples, channels, height, width): transpose the data."
        c, size = inputs.shape[1], inputs.shape[2]
        for channels, side in _images(name, model, c, size):
            if _fails(model, torch.randn(2, channels, side, side)) is None:
                return f"It runs on images of {channels} x {side} x {side}: {_options(channels, side, c, size, data)}."
    if _fails(model, torch.ones(2, 8, dtype=torch.long)) is None:
        return "It takes token numbers: give integers of shape (samples, length) as a file, --data FILE.npy."
    linear = next((module for module in model.modules() if isinstance(module, nn.Linear)), None)
    if linear is not None and _fails(model, torch.randn(2, linear.in_features)) is None:
        return (
            f"It takes vectors of {linear.in_features} numbers: give them as a file of shape "
            f"(samples, {linear.in_features}), --data FILE.npy."
        )
    return "Give inputs that it takes as a file, --data FILE.npy, or compare in Python with forward=."


def _options(channels: int, side: int, given_channels: int, given_side: int, data: str) -> str:
    """What makes images of that shape."""
    made = data in ("--data digits", "--data noise")
    if Path(data.removeprefix("--data ")).is_file() or (channels != given_channels and not made):
        return "give such images as a file, --data FILE.npy"
    size = [f"--image-size {side}"] if side != given_side else []
    return " ".join(size + ([f"--channels {channels}"] if channels != given_channels else []))


def _images(name: str, model: nn.Module, channels: int, size: int) -> Iterator[tuple[int, int]]:
    """Channels and sizes to try, the likely ones first."""
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), channels)
    own = [side for side in _own_sizes(name, model) if side != size]
    yield from product(dict.fromkeys((channels, first)), dict.fromkeys((size, *own, *SIZES)))


def _own_sizes(name: str, model: nn.Module) -> list[int]:
    """The size of images that the library says the network is made for, if it says so."""
    sizes = []
    settings = getattr(model, "pretrained_cfg", None)  # timm
    if isinstance(settings, Mapping) and settings.get("input_size"):
        sizes.append(settings["input_size"][-1])
    sizes.append(getattr(getattr(model, "config", None), "image_size", None))  # transformers
    library, _, network = name.partition(":")
    if library == "torchvision":
        from torchvision.models import get_model_weights

        transforms = next(iter(get_model_weights(network))).transforms
        sizes.append(getattr(transforms, "keywords", {}).get("crop_size"))
    return [side for side in sizes if isinstance(side, int)]
