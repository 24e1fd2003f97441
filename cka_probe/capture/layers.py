"""Select layers by name, glob, regular expression, class, "leaves", "blocks" or predicate; list them in a table."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .nearest import nearest_hint
from .state import borrowed
from .trees import first_tensor

__all__ = [
    "Layers",
    "Selection",
    "block_layers",
    "layer_table",
    "leaf_layers",
    "select_layers",
    "unknown_layer",
    "unwrap",
]

Layers = str | type[nn.Module] | Callable[[str, nn.Module], bool] | Sequence[Any]
"""Type of the argument ``layers``; a sequence may mix the other forms."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def unwrap(model: nn.Module) -> nn.Module:
    """Network inside DataParallel, DistributedDataParallel and torch.compile wrappers, which may be nested.

    Hooks on the replicas or compiled graphs of a wrapper would be lost.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def leaf_layers(model: nn.Module) -> list[str]:
    """Paths of all modules without children, in the order of definition; a shared module appears once.

    MultiheadAttention counts as a leaf, because it uses the weights of its child without calling it.
    """
    uncalled = {id(child) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for child in m.children()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) or not (_composite(module) or id(module) in uncalled)
    ]


def block_layers(model: nn.Module) -> list[str]:
    """Paths of the outermost repeated blocks, in the order of definition; a shared module appears once.

    A block is a module with children in a Sequential, ModuleList or ModuleDict (residual block of a ResNet, encoder
    layer of a transformer, dense block of a DenseNet). Three or more modules of one class with one parent are blocks
    too (inception modules of a GoogLeNet, steps of a U-Net). Each other module with children under that parent is then
    a block as well, unless it holds blocks itself.
    """
    seen: set[int] = set()

    def visit(path: str, module: nn.Module, *, look_beside: bool = True) -> list[str]:
        found: list[str] = []
        children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
        kinds = Counter(type(child) for _, child in children if _composite(child) and type(child) not in CONTAINERS)
        beside = {kind for kind, count in kinds.items() if count >= 3 and look_beside}
        for child_path, child in children:
            if not _composite(child) or id(child) in seen:
                continue
            if type(child) in CONTAINERS:
                found += visit(child_path, child, look_beside=look_beside)
            elif type(module) in CONTAINERS or type(child) in beside:
                found.append(child_path)
            else:
                inner = visit(child_path, child, look_beside=look_beside and not beside)
                found += inner or ([child_path] if beside else [])
            seen.add(id(child))
        return found

    return visit("", model)


def _composite(module: nn.Module) -> bool:
    return any(True for _ in module.children())


@dataclass(frozen=True)
class Selection:
    """Paths of the selected modules, and those that the caller wrote out: these must run, the others need not."""

    paths: tuple[str, ...]
    named: frozenset[str]


def select_layers(model: nn.Module, layers: Layers = "leaves") -> Selection:
    r"""Paths of the modules of ``model`` that ``layers`` selects.

    Parameters
    ----------
    model : torch.nn.Module
        The network. It may be wrapped (DataParallel, torch.compile).
    layers : str, type, callable or sequence of these
        "leaves" (every module without children), "blocks" (the outermost repeated blocks), a module path
        ("layer1.0.conv1"; "" is the network itself), a glob ("layer*.conv?"), a regular expression after "re:"
        ("re:layer[12]\..*"), a module class, or a predicate of (path, module).

    Returns
    -------
    Selection
        Paths in the order of the sequence, and within one pattern in the order of definition. No path appears twice.

    Raises
    ------
    ValueError
        If a part of ``layers`` selects no layer. The message names the layers nearest to a misspelt path.
    TypeError
        If ``layers`` or one of its parts is of another type, or ``model`` is no module or in TorchScript.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> select_layers(net, nn.Linear).paths
    ('0', '2')
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"A model must be a torch.nn.Module, got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("A model in TorchScript runs no hooks. Pass the module that it was made from.")
    modules = dict(model.named_modules(remove_duplicate=False))
    single = isinstance(layers, str | type) or callable(layers)
    parts: Any = [layers] if single else layers
    if not isinstance(parts, Iterable):
        raise TypeError(f"`layers` must be a name, pattern, type, function or a list of these, got {layers!r}.")
    paths: dict[str, None] = {}
    named: set[str] = set()
    for part in parts:
        exact, picked = _pick(model, modules, part)
        paths.update(dict.fromkeys(picked))
        if exact:
            named.update(picked)
    if not paths:
        raise ValueError("`layers` is empty: name at least one layer.")
    return Selection(tuple(paths), frozenset(named))


def _pick(model: nn.Module, modules: dict[str, nn.Module], part: Any) -> tuple[bool, list[str]]:
    """Return whether ``part`` is a path written out, and the paths that it selects."""
    if isinstance(part, str):
        if part == "leaves":
            return False, leaf_layers(model)
        if part == "blocks":
            found = block_layers(model)
            if not found:
                raise ValueError(
                    f"{type(model).__name__} has no repeated blocks: no modules with children in a Sequential or "
                    'ModuleList, nor three of one class with one parent. Use layers="leaves" or name its layers.'
                )
            return False, found
        if part in modules:
            return True, [part]
        if part.startswith("re:"):
            try:
                pattern = re.compile(part[3:])
            except re.error as error:
                raise ValueError(f"`layers`: {part[3:]!r} is not a regular expression: {error}.") from error
            found = [name for name in modules if name and pattern.fullmatch(name)]
        elif any(c in part for c in "*?["):
            found = [name for name in modules if name and fnmatch.fnmatchcase(name, part)]
        else:
            raise ValueError(unknown_layer(part, modules, type(model).__name__))
        if not found:
            hint = nearest_hint(part, modules, kind="Its layers")
            raise ValueError(f"The pattern {part!r} matches no layer of {type(model).__name__}. {hint}")
        return False, found
    if isinstance(part, type):
        if not issubclass(part, nn.Module):
            raise TypeError(f"`layers`: {part.__name__} is not a torch.nn.Module class.")
        found = [name for name, module in modules.items() if isinstance(module, part)]
        if not found:
            raise ValueError(f"{type(model).__name__} has no layer of type {part.__name__}.")
        return False, found
    if isinstance(part, nn.Module):
        path = next((repr(name) for name, module in modules.items() if module is part), "its path")
        raise TypeError(f"`layers` holds a {type(part).__name__} module. Name it by its path: {path}.")
    if callable(part):
        found = [name for name, module in modules.items() if part(name, module)]
        if not found:
            raise ValueError(f"The predicate in `layers` selects no layer of {type(model).__name__}.")
        return False, found
    raise TypeError(f"`layers` may hold names, patterns, types and functions, not {type(part).__name__}.")


def unknown_layer(name: str, names: Iterable[str], model_name: str) -> str:
    """Message for a layer path that does not exist, with the nearest paths."""
    return f"{model_name} has no layer {name!r}. {nearest_hint(name, names, kind='Its layers')}"


def layer_table(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[tuple[str, str, str, int]]:
    """Path, class, output shape and number of parameters of every module.

    Parameters
    ----------
    model : torch.nn.Module
        The network. It is in eval mode during the run.
    run : callable
        Runs the network once on an example.

    Returns
    -------
    list of (path, class, shape, parameters)
        In the order of execution. Modules that did not run come last and have an empty shape.
    """
    model = unwrap(model)
    shapes: dict[str, str] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            shapes.setdefault(path, "" if tensor is None else str(tuple(tensor.shape)))

        return hook

    modules = {name: module for name, module in model.named_modules() if name}
    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    try:
        with borrowed([model]):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    ordered = [*shapes, *(name for name in modules if name not in shapes)]
    return [
        (name, type(modules[name]).__name__, shapes.get(name, ""), sum(p.numel() for p in modules[name].parameters()))
        for name in ordered
    ]
