"""The layers that "leaves" and "blocks" select: which modules compute an activation, and which only serve another."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import nn

from .wrappers import children_inside

__all__ = ["block_layers", "has_forward", "leaf_layers"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

NOT_LEAVES = ("container", "transformer", "module", "adaptive", "lazy")
"""Modules of ``torch.nn.modules`` whose classes hold layers; all other classes are layers themselves."""

GRAPH_LAYERS = ("torch_geometric.nn.dense.dense_", "dgl.nn.pytorch.conv.")
"""Where the layers on graphs are that do not derive from PyG's MessagePassing."""

ADAPTED_LAYER = re.compile("(?i)^lora_?(linear|conv|embedding|layer|dense)|(linear|conv.*|embedding)_?(with_?)?lora$")
"""Names of classes that adapt one layer: LoRALinear, LoraLayer, LinearWithLoRA."""


def leaf_layers(model: nn.Module) -> list[str]:
    """Paths of all modules that are layers of their own, in the order of definition; a shared module appears once.

    That is every module without children, and every module whose children only serve it: a layer of ``torch.nn`` that
    was parametrised, adapted (LoRA) or prepared for quantisation, attention, message passing on graphs. A module
    without a forward (ParameterList) cannot run, so it is none; nor are the observers of torch.ao.
    """
    found: list[str] = []
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        if _is_leaf(module):
            if has_forward(module):
                found.append(path)
            return
        for name, child in children_inside(module):
            if not _watches(child) or _is_functional(module):
                visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return found


def block_layers(model: nn.Module) -> list[str]:
    """Paths of the outermost repeated blocks, in the order of definition; a shared module appears once.

    A block is a module with children in a Sequential, ModuleList or ModuleDict (residual block of a ResNet, encoder
    layer of a transformer, dense block of a DenseNet). Three or more modules of one class with one parent are blocks
    too (inception modules of a GoogLeNet, steps of a U-Net). Each other module with children under that parent is then
    a block as well, unless it holds blocks itself. Children that only serve a layer do not make it a block.
    """
    seen: set[int] = set()

    def visit(path: str, module: nn.Module, *, look_beside: bool = True) -> list[str]:
        found: list[str] = []
        named: dict[int, tuple[str, nn.Module]] = {}
        for name, child in children_inside(module):
            named.setdefault(id(child), (f"{path}.{name}" if path else name, child))
        children = list(named.values())
        kinds = Counter(type(child) for _, child in children if _composite(child) and type(child) not in CONTAINERS)
        beside = {kind for kind, count in kinds.items() if count >= 3 and look_beside}
        for child_path, child in children:
            if not _composite(child) or id(child) in seen:
                continue
            if type(child) in CONTAINERS:
                found += visit(child_path, child, look_beside=look_beside)
            elif type(module) in CONTAINERS or type(child) in beside:
                found.append(child_path)
            elif not _is_unit(child):
                inner = visit(child_path, child, look_beside=look_beside and not beside)
                found += inner or ([child_path] if beside else [])
            seen.add(id(child))
        return found

    return visit("", model)


def _composite(module: nn.Module) -> bool:
    return _is_unit(module) or not _is_layer(module)


def _is_leaf(module: nn.Module) -> bool:
    return _is_unit(module) or _is_layer(module)


def has_forward(module: nn.Module) -> bool:
    """Whether a module can run; a ModuleList cannot."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or "forward" in vars(module) or type(module).forward is not nn.Module.forward


def _is_unit(module: nn.Module) -> bool:
    """Whether a module is one layer although its children do much of its work, so that it may be a block as well.

    Attention uses the weights of its projection without calling it. Layers on graphs call theirs on nodes and on edges,
    before the messages are added up.
    """
    if isinstance(module, nn.MultiheadAttention) or _of(module, "MessagePassing", "torch_geometric"):
        return True
    return any(cls.__module__.startswith(GRAPH_LAYERS) for cls in type(module).__mro__)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has no children, or only children that compute weights, watch it or adapt it."""
    children = list(children_inside(module))
    if not children:
        return True
    if _is_functional(module):
        return False
    if all(_watches(child) for _, child in children):
        return True
    if _is_torch_layer(module):
        # timm's norms have an activation inside, which is a layer as it is behind any other norm.
        return not ("norm" in type(module).__name__.lower() and all(_activates(child) for _, child in children))
    return _is_adapted(module)


def _is_torch_layer(module: nn.Module) -> bool:
    """Whether the class is a layer of ``torch.nn`` (Linear, convolutions, norms, recurrent layers) or derives from one.

    Its children compute its weights, watch or adapt it: LoRA by inheritance, quantisation-aware training.
    """
    places = [cls.__module__ for cls in type(module).__mro__]
    plain = [place.removeprefix("torch.nn.modules.") for place in places if place.startswith("torch.nn.modules.")]
    if any(place not in NOT_LEAVES for place in plain):
        return True
    return any(place.startswith("torch.ao.nn.") for place in places) and not isinstance(module, CONTAINERS)


def _is_adapted(module: nn.Module) -> bool:
    """Whether a module adds a small adapter to one layer (LoRA and its relatives) and replaces it in the network."""
    children = dict(children_inside(module))
    if _of(module, "BaseTunerLayer", "peft"):
        return _is_leaf(children["base_layer"]) if "base_layer" in children else False
    if _of(module, "AuxiliaryTrainingWrapper", "peft") or _of(module, "ModulesToSaveWrapper", "peft"):
        held = [children["original_module"]] if "original_module" in children else children.values()
        return all(_is_leaf(child) for child in held)
    names = [*children, *module._parameters]
    adapters = {name for name in names if name.lower().startswith("lora")}
    if not adapters:  # the parts of an adapted layer may have names of their own
        named_so = ADAPTED_LAYER.search(type(module).__name__) is not None
        return named_so and all(_is_layer(child) for child in children.values())
    adapted = [
        child for name, child in children.items() if name not in adapters and any(True for _ in child.parameters())
    ]
    return len(adapted) <= 1 and all(_is_layer(child) for child in adapted)


def _is_functional(module: nn.Module) -> bool:
    """Whether a module computes a sum or product for quantisation: it is never called; its methods call its child."""
    return _of(module, "FloatFunctional", "torch") or _of(module, "QFunctional", "torch")


def _watches(child: nn.Module) -> bool:
    """Whether a child observes or rounds values for quantisation (torch.ao)."""
    return _of(child, "ObserverBase", "torch") or _of(child, "FakeQuantizeBase", "torch")


def _of(module: nn.Module, name: str, library: str) -> bool:
    """Whether a module's class derives from one of this name in a library, which is not imported for it."""
    return any(cls.__name__ == name and cls.__module__.partition(".")[0] == library for cls in type(module).__mro__)


def _activates(child: nn.Module) -> bool:
    place = type(child).__module__
    return isinstance(child, nn.Identity) or place.startswith(
        ("torch.nn.modules.activation", "torch.nn.modules.dropout", "timm.")
    )
