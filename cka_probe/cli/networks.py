"""Networks and images for the command line: load them from the texts that name them, and read lists of layers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import nn

__all__ = ["layer_list", "load_images", "load_models", "refuse_options_of_images"]


def load_models(
    model_x: str,
    model_y: str | None,
    weights_x: Path | None,
    weights_y: Path | None,
    num_classes: int | None,
    seed: int,
    chosen: tuple[str, str] | None,
) -> tuple[tuple[str, str], tuple[nn.Module, nn.Module], list[str]]:
    """Names, the networks, and notes about their weights; the same object twice if name and weights are the same."""
    import torch

    from ..distill.models.sources import load_network

    torch.manual_seed(seed)
    if model_y is None and weights_y is None:
        weights_y = weights_x  # the first network itself
    model_y = model_y or model_x
    same = model_y == model_x and weights_y == weights_x
    wanted = [(model_x, weights_x)] if same else [(model_x, weights_x), (model_y, weights_y)]
    names, models, notes = [], [], []
    for i, (source, weights) in enumerate(wanted):
        found = load_network(source, weights, num_classes=num_classes)
        # Without its weights, two networks of one kind would have one name.
        name = source if same or model_x != model_y else f"{source} ({weights or 'no weights'})"
        name = name if chosen is None else chosen[i]
        if found.untrained:
            notes.append(f"no weights given: {name} has random weights (seed {seed})")
        notes += found.notes
        names.append(name)
        models.append(found.model)
    return chosen or (names[0], names[-1]), (models[0], models[-1]), notes


def load_images(
    data: str,
    sources: tuple[str, str],
    models: tuple[nn.Module, nn.Module],
    names: tuple[str, str],
    batch_size: int,
    seed: int,
    sizes: dict[str, Any],
) -> tuple[Iterable[Any], Iterable[Any] | None, list[str]]:
    """Batches for both networks, those of the second if it wants other values of the same images, and notes on both."""
    from .inputs import load_data
    from .normalisation import normalisation

    if not Path(data).is_dir():
        return load_data(data, batch_size=batch_size, seed=seed, **sizes), None, []
    wanted = [normalisation(model, source) for model, source in zip(models, sources, strict=True)]
    notes = [
        f"images for {name} are normalised with mean {_listed(one.mean)} and deviation {_listed(one.deviation)}, "
        f"{one.origin}"
        for name, one in dict(zip(names, wanted, strict=True)).items()
    ]
    batches = [
        load_data(data, batch_size=batch_size, seed=seed, normalise=(one.mean, one.deviation), **sizes)
        for one in wanted
    ]
    same = wanted[0][:2] == wanted[1][:2]
    return batches[0], None if same else batches[1], notes


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def refuse_options_of_images(context: typer.Context, data: str) -> None:
    """Raise ValueError for an option that the data would ignore: a file has its own shape, a folder three channels."""
    folder = Path(data).is_dir()
    for name in ("image_size", "channels"):
        source = context.get_parameter_source(name)
        ignored = Path(data).is_file() or (folder and name == "channels")
        if ignored and source is not None and source.name == "COMMANDLINE":
            reason = "its images have three channels" if folder else "its inputs have their own shape"
            raise ValueError(f"--{name.replace('_', '-')} does not apply to --data {data}: {reason}.")


def layer_list(text: str) -> list[Any]:
    """The parts of a list of layers; "conv1=stem" calls layer conv1 stem."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [part if "=" not in part or part.startswith("re:") else dict([part.split("=", 1)]) for part in parts]
