"""Which part of ``layers`` and ``exclude`` is meant for which model of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..capture.layers import Layers, NoLayerError, layer_parts, select_layers
from ..capture.nearest import nearest_hint

__all__ = ["excluded", "layers_by_model"]


def layers_by_model(models: Mapping[str, nn.Module], layers: Any) -> dict[str, Layers]:
    """The ``layers`` of each model of ``compare_many``.

    Parameters
    ----------
    models : mapping of str to torch.nn.Module
        The models by name.
    layers : any form of ``layers``, mapping of model name to that, or sequence of (model name, layer)
        The names of the models decide: a mapping whose keys are names of models gives the layers of each; any other
        mapping renames layers. A layer that is written out must exist in one of the models, so that the rows of
        another result can be passed.

    Raises
    ------
    ValueError
        If a mapping lacks a model, or mixes names of models with others, or a layer exists in no model.
    TypeError
        If ``layers`` is of another type.
    """
    if isinstance(layers, Mapping):
        strange = [key for key in layers if key not in models]
        if len(strange) == len(layers):
            return dict.fromkeys(models, layers)
        if strange:
            raise ValueError(
                f"`layers` mixes names of models with {strange[0]!r}, which is none. "
                f"{nearest_hint(str(strange[0]), models, kind='The models')} To rename layers as well, give each model "
                "a mapping {layer: name} of its own."
            )
        return _complete(models, dict(layers))
    parts = layer_parts(layers)
    if parts and all(isinstance(part, tuple) and len(part) == 2 for part in parts):
        pairs: dict[str, Any] = {}
        for model, layer in parts:
            if model not in models:
                raise ValueError(
                    f"`layers`: no model is called {model!r}. {nearest_hint(str(model), models, kind='The models')}"
                )
            pairs.setdefault(model, []).append(layer)
        return _complete(models, pairs)
    chosen: dict[str, list[Any]] = {name: [] for name in models}
    for part in parts:
        errors: dict[str, NoLayerError] = {}
        for name, model in models.items():
            try:
                if _is_path(part):
                    select_layers(model, [part])
                chosen[name].append(part)
            except NoLayerError as error:
                errors[name] = error
        if len(errors) == len(models):
            raise _best(errors.values())
    for name, own in chosen.items():
        if parts and not own:
            raise ValueError(f"No layer in `layers` exists in {name}. Give the layers of every model by its name.")
    return dict(chosen)


def _complete(models: Mapping[str, nn.Module], chosen: dict[str, Any]) -> dict[str, Layers]:
    if missing := [name for name in models if name not in chosen]:
        raise ValueError(f"`layers` has no entry for {', '.join(map(repr, missing))}. Give the layers of every model.")
    return chosen


def _best(errors: Iterable[NoLayerError]) -> NoLayerError:
    """Of the errors of several models, the first that knows a near name."""
    errors = list(errors)
    return next((error for error in errors if "Did you mean" in str(error)), errors[0])


def _is_path(part: Any) -> bool:
    """Whether a part of ``layers`` is the name of a layer, not a pattern."""
    return (
        isinstance(part, str) and part not in ("leaves", "blocks") and not any(mark in part for mark in ("re:", *"*?["))
    )


def excluded(models: Sequence[nn.Module], layers: Sequence[Layers], exclude: Layers | None) -> list[list[Any] | None]:
    """The parts of ``exclude`` for each model. Models may differ, so a part must remove a layer of one of them.

    Parameters
    ----------
    models : sequence of torch.nn.Module
        The models.
    layers : sequence
        The layers of each.
    exclude : any form of ``layers``, optional
        The layers to leave out.

    Raises
    ------
    ValueError
        If a part of ``exclude`` removes no layer of any model.
    TypeError
        If ``exclude`` is of another type.
    """
    if exclude is None:
        return [None] * len(models)
    chosen: list[list[Any]] = [[] for _ in models]
    for part in layer_parts(exclude):
        errors = []
        for own, model, selected in zip(chosen, models, layers, strict=True):
            try:
                select_layers(model, selected, [part])
                own.append(part)
            except NoLayerError as error:
                errors.append(error)
        if len(errors) == len(models):
            raise _best(errors)
    return [own or None for own in chosen]
