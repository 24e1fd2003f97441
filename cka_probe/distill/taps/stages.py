"""Find the stages of a network by running it once, and pair a student's stages with its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...capture.batches import Forward, call_model
from ...capture.layers import block_layers, unwrap
from ...capture.state import borrowed
from ...capture.trees import tensors
from .running import own_inputs, run_network, takes_each

__all__ = ["match_stages", "stage_layers"]

# Pairs for two networks of one resolution (transformers) of any depth: as many as an image network has stages.
FLAT_STAGES = 4

# Modules that only reshape, drop or pool. The layer before them is the end of the stage.
PASSIVE = ("pool", "dropout", "droppath", "flatten", "identity", "permute")


def stage_layers(model: nn.Module, example_input: Any) -> list[str]:
    """The layers at which the stages of a network end, in the order in which they run, without the stem.

    If the network has an attribute ``stage_layers``, as those of `cka_probe.distill.models` have, this is the result.
    Otherwise the network is run once in eval mode without gradients, and the stages are the last layers at each
    resolution. If the resolution never changes (transformers, multilayer perceptrons), the result is up to four of the
    blocks, or of the hidden layers with weights, at equal distances, including the last one.

    Parameters
    ----------
    model : torch.nn.Module
        A network. Its state, its mode and the random generators are restored.
    example_input : Tensor, mapping or tuple
        A batch as the network takes it. One sample is enough.

    Returns
    -------
    list of str
        Module paths.

    Raises
    ------
    ValueError
        If no stages are found. Name the layers yourself then.

    Examples
    --------
    >>> import torch, torchvision
    >>> stage_layers(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64))
    ['layer1', 'layer2', 'layer3', 'layer4']
    """
    paths, flat = _find(model, example_input, "network")
    return _spread(paths, min(FLAT_STAGES, len(paths))) if flat else paths


def match_stages(
    student: nn.Module, teacher: nn.Module, example_input: Any, forward: Mapping[str, Forward | None] | None = None
) -> tuple[list[str], list[str]]:
    """Pairs of layers of student and teacher that a feature loss can compare.

    The stages of both networks (see `stage_layers`) are paired from the end; the network with fewer stages decides the
    number. A network with blocks of one resolution gives as many of them, at equal distances.

    Parameters
    ----------
    student, teacher : torch.nn.Module
        Any two networks that take `example_input`.
    example_input : Tensor, mapping or tuple
        A batch as the networks take it; {"student": ..., "teacher": ...} if each takes its own. One sample is enough.
    forward : mapping, optional
        ``forward["student"](model, example_input)`` runs the student, ``forward["teacher"]`` the teacher, where they
        are not called with the input alone.

    Returns
    -------
    student_layers, teacher_layers : list of str
        Of equal length, at least 1.

    Raises
    ------
    ValueError
        If no stages are found in one of the networks. Name the layers yourself then.

    Examples
    --------
    >>> import torch
    >>> from cka_probe.distill.models import build
    >>> match_stages(build("ShuffleNetV1"), build("ResNet18"), torch.zeros(1, 3, 32, 32))
    (['layer1', 'layer2', 'layer3'], ['layer2', 'layer3', 'layer4'])
    """
    ways = forward or {}
    student_paths, student_flat = _find(student, example_input, "student", ways.get("student"))
    teacher_paths, teacher_flat = _find(teacher, example_input, "teacher", ways.get("teacher"))
    count = min(len(student_paths), len(teacher_paths))
    if student_flat and teacher_flat:
        count = min(count, FLAT_STAGES)
    return (
        _spread(student_paths, count) if student_flat else student_paths[-count:],
        _spread(teacher_paths, count) if teacher_flat else teacher_paths[-count:],
    )


@dataclass
class _Visit:
    """One module in the forward pass. An extent is a number of positions: height x width, or tokens."""

    module: nn.Module
    entered: int | None  # extent of the input, None for a matrix
    left: int | None  # extent of the output
    point: Tensor | None  # the output itself if its extent is 1, because it may be the logits


def _find(model: nn.Module, example_input: Any, whose: str, forward: Forward | None = None) -> tuple[list[str], bool]:
    """Ends of the stages and False; for a network of one resolution its blocks and True."""
    model = unwrap(model)
    own = getattr(model, "stage_layers", None)
    if isinstance(own, tuple | list) and own:
        return list(own), False
    visits, logits = _run(model, own_inputs(example_input, whose), forward)
    stages = _resolution_ends(visits, logits)
    if len(stages) > 1:
        return stages, False
    blocks = [path for path in block_layers(model) if path in visits]
    if len(blocks) > 1:
        return blocks, True
    weight_layers = [path for path, visit in visits.items() if _is_weight_layer(visit.module)]
    if len(weight_layers) > 1:
        return weight_layers[:-1], True  # the last one gives the logits
    raise ValueError(
        f"No stages were found in the {whose} ({type(model).__name__}): it has fewer than two layers with weights. "
        "Name the layers to compare, or use a loss of logits."
    )


def _run(model: nn.Module, example_input: Any, forward: Forward | None) -> tuple[dict[str, _Visit], Tensor | None]:
    """Every module that ran, in the order in which they finished, and the network's output."""
    visits: dict[str, _Visit] = {}

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = next(tensors(output), None)
            # A module that is called again has the input of its first call and the output of its last.
            before = visits.pop(path, None)
            entered = _extent(next(tensors(inputs), None)) if before is None else before.entered
            left = _extent(tensor)
            visits[path] = _Visit(module, entered, left, tensor if left == 1 else None)

        return hook

    handles = [
        module.register_forward_hook(hook_of(path))
        for path, module in model.named_modules()
        if "parametrizations" not in path.split(".")  # they compute weights
    ]
    try:
        with borrowed([model]):
            parts = example_input if isinstance(example_input, tuple | list) else None
            if forward is None and parts is not None and not takes_each(model, *parts):
                output = call_model(model, example_input)  # a pair (input, target)
            else:
                output, _ = run_network(model, example_input, forward)
    finally:
        for handle in handles:
            handle.remove()
    return visits, next(tensors(output), None)


def _resolution_ends(visits: dict[str, _Visit], logits: Tensor | None) -> list[str]:
    """The last unit at each extent, without the stem and without the layers after global pooling."""
    units = set(_units("", visits))
    groups: dict[int, list[str]] = {}
    for path, visit in visits.items():
        if path not in units or visit.left is None:
            continue
        if _is_passive(visit.module):
            if visit.left == 1 and visit.entered != 1:
                break  # global pooling, after which comes the classifier
        elif visit.point is None or logits is None or not _same_values(visit.point, logits):
            groups.setdefault(visit.left, []).append(path)
    weights = {
        extent: sum(_is_weight_layer(inner) for path in paths for inner in visits[path].module.modules())
        for extent, paths in groups.items()
    }
    kept = [extent for extent in groups if weights[extent] > 0]
    if len(kept) > 1 and weights[kept[0]] == 1:
        kept = kept[1:]  # a single convolution at the first resolution is the stem
    ends = {groups[extent][-1] for extent in kept}
    return [path for path in visits if path in ends]


def _units(path: str, visits: dict[str, _Visit]) -> list[str]:
    """The units in `path`, the modules that are not divided further.

    A module that lowers the resolution more than once (``features``, an encoder) contains several units. One that
    lowers it once or not at all (a stage, a residual block) is a unit.
    """
    inside = [other for other in visits if other != path and (not path or other.startswith(f"{path}."))]
    if path:
        entered, left = visits[path].entered, visits[path].left or 1  # logits have no extent
        extents = {visits[other].left for other in inside}
        # An extent below that of the output belongs to a side path, such as the pooled gate of squeeze-and-excitation.
        falls = [extent for extent in extents if entered and extent and left <= extent < entered]
        if len(falls) < 2:
            return [path]
    # A ModuleList does not run itself, so the children are the nearest modules that ran.
    within = {other for other in inside if any(other.startswith(f"{between}.") for between in inside)}
    return [unit for child in inside if child not in within for unit in _units(child, visits)]


def _spread(paths: list[str], count: int) -> list[str]:
    return [paths[(index + 1) * len(paths) // count - 1] for index in range(count)]


def _extent(tensor: Tensor | None) -> int | None:
    """Number of positions of a map (channels first or last) or sequence (n, tokens, d); None for other shapes."""
    if tensor is None or tensor.ndim not in (3, 4):
        return None
    if tensor.ndim == 3:
        return tensor.shape[1]
    channels_last = tensor.shape[1] == tensor.shape[2] != tensor.shape[3]
    return tensor.shape[1] * tensor.shape[2] if channels_last else tensor.shape[2] * tensor.shape[3]


def _same_values(point: Tensor, logits: Tensor) -> bool:
    return point.numel() == logits.numel() and torch.equal(point.flatten(), logits.flatten())


def _is_passive(module: nn.Module) -> bool:
    return any(word in type(module).__name__.lower() for word in PASSIVE)


def _is_weight_layer(module: nn.Module) -> bool:
    """Whether the module itself has a weight matrix or filter, as convolutions and linear layers have."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
