"""With which mean and deviation the images of a network were normalised when it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Normalisation", "normalisation"]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, of images from 0 to 1, and where they come from."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    origin: str


def normalisation(model: nn.Module, source: str) -> Normalisation:
    """The normalisation that the weights of a network were trained with, as far as the network or its files say.

    Parameters
    ----------
    model : Module
        The network. timm's models carry a configuration.
    source : str
        The text that names it. A folder of Hugging Face (``hf:FOLDER``) may hold ``preprocessor_config.json``, that of
        a run ``student.json``.

    Returns
    -------
    Normalisation
        ImageNet's if nothing else is known.

    Raises
    ------
    ValueError
        If ``preprocessor_config.json`` is no JSON, or its mean or deviation are not lists of numbers of one length.

    Examples
    --------
    >>> normalisation(nn.Identity(), "resnet8").mean
    (0.485, 0.456, 0.406)
    """
    from ..distill.data.image_folders import IMAGENET_DEVIATION, IMAGENET_MEAN

    kind, _, folder = source.partition(":")
    file = Path(folder) / "preprocessor_config.json"
    described = Path(source) / "student.json"
    if described.is_file():
        told = json.loads(described.read_text(encoding="utf-8"))  # it was read before, when the network was loaded
        if "image_mean" in told and "image_std" in told:
            mean, deviation = _checked(told["image_mean"], told["image_std"], str(described))[:2]
            if len(mean) == 3:  # an image of a folder has three channels
                return Normalisation(mean, deviation, str(described))
    if kind == "hf" and file.is_file():
        try:
            settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no valid JSON: {error}") from error
        if not settings.get("do_normalize", True):
            return Normalisation((0.0,) * 3, (1.0,) * 3, f"{file} says do_normalize = false")
        if "image_mean" in settings and "image_std" in settings:
            return _checked(settings["image_mean"], settings["image_std"], str(file))
    for name in ("pretrained_cfg", "default_cfg"):
        found = getattr(model, name, None)
        found = found if isinstance(found, dict) else getattr(found, "__dict__", None)
        if isinstance(found, dict) and found.get("mean") is not None and found.get("std") is not None:
            return _checked(found["mean"], found["std"], "timm's configuration of the model")
    return Normalisation(tuple(IMAGENET_MEAN), tuple(IMAGENET_DEVIATION), "ImageNet's, because the network names none")


def _checked(mean: Any, deviation: Any, origin: str) -> Normalisation:
    try:
        pair = tuple(map(float, mean)), tuple(map(float, deviation))
    except (TypeError, ValueError):
        pair = (), ()
    if not pair[0] or len(pair[0]) != len(pair[1]) or not all(part > 0 for part in pair[1]):
        raise ValueError(
            f"{origin}: mean and deviation of the images must be lists of numbers, got {mean!r} and {deviation!r}."
        )
    return Normalisation(*pair, origin)
