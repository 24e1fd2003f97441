"""Wrappers around a network and its parts: look through them, name layers without them, run compiled parts."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

__all__ = ["called_model", "children_inside", "compiled_parts", "eagerly", "named_layers", "plain_path", "unwrap"]

WRAPPERS = {
    # class: (libraries that it comes from, attribute that holds the network)
    "AveragedModel": ({"torch"}, "module"),
    "FullyShardedDataParallel": ({"torch", "fairscale"}, "module"),
    "ShardedDataParallel": ({"fairscale"}, "module"),
    "DistributedDataParallel": ({"torch", "apex", "megatron"}, "module"),
    "DataParallel": ({"torch"}, "module"),
    "DeepSpeedEngine": ({"deepspeed"}, "module"),
    "ModelEma": ({"timm"}, "ema"),
    "ModelEmaV2": ({"timm"}, "module"),
    "ModelEmaV3": ({"timm"}, "module"),
    "CheckpointWrapper": ({"torch"}, "_checkpoint_wrapped_module"),
    "OffloadWrapper": ({"torch"}, "_checkpoint_wrapped_module"),
    "_FabricModule": ({"lightning", "lightning_fabric"}, "_forward_module"),
}
"""Classes that only hand their arguments on to the network that they hold; known by name, so no library is imported."""

CALLED_THEMSELVES = ("FullyShardedDataParallel",)
"""Wrappers that gather the weights in their own forward: the network inside cannot run without them."""


def unwrap(model: nn.Module) -> nn.Module:
    """Network inside wrappers, which may be nested.

    Known wrappers are those of data parallelism (DataParallel, DistributedDataParallel, FSDP, DeepSpeed), of
    ``torch.compile``, ``AveragedModel``, and every module that holds nothing but ``module`` and whose forward is
    ``return self.module(...)`` with its own arguments. Hooks on the replicas or compiled graphs of a wrapper would be
    lost, and the names of the layers would depend on it.
    """
    while True:
        inner = _inside(model)
        if inner is None and isinstance(model, nn.Module) and _only_delegates(model):
            inner = model._modules["module"]
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def called_model(model: nn.Module) -> nn.Module:
    """What must be called to run the network: the outermost FSDP wrapper if there is one, otherwise ``unwrap(model)``.

    FSDP gathers the sharded weights in its own forward.
    """
    layer: nn.Module | None = model
    while isinstance(layer, nn.Module):
        if any(cls.__name__ in CALLED_THEMSELVES for cls in type(layer).__mro__):
            return layer
        layer = _inside(layer)
    return unwrap(model)


def _inside(module: nn.Module) -> nn.Module | None:
    """Network inside one known wrapper; None if the module is none."""
    if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        return inner
    for cls in type(module).__mro__:
        libraries, attribute = WRAPPERS.get(cls.__name__, ((), ""))
        if cls.__module__.partition(".")[0] in libraries:
            inner = getattr(module, attribute, None)
            return inner if isinstance(inner, nn.Module) else None
    return None


def _only_delegates(module: nn.Module) -> bool:
    """Whether a module of an unknown class certainly computes what its only child ``module`` computes."""
    return (
        not isinstance(module, torch.jit.ScriptModule)
        and list(module._modules) == ["module"]
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and _hands_on(type(module).forward)
    )


@functools.lru_cache(maxsize=256)
def _hands_on(forward: Any) -> bool:
    """Whether the source of a forward is ``return self.module(...)`` with exactly its own arguments."""
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return False
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        return False
    spec = function.args
    own, *rest = [argument.arg for argument in (*spec.posonlyargs, *spec.args)] or [""]
    handed = [*rest, *([f"*{spec.vararg.arg}"] if spec.vararg else [])]
    handed += [f"{argument.arg}={argument.arg}" for argument in spec.kwonlyargs]
    handed += [f"**{spec.kwarg.arg}"] if spec.kwarg else []
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
        return False
    return ast.unparse(body[0].value) == f"{own}.module({', '.join(handed)})"


# --- names --------------------------------------------------------------------------------------------------------


def children_inside(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each child, inside its wrappers; without parametrizations, which compute weights.

    A module in TorchScript has none: its parts run inside its graph.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name, child in module._modules.items():
        if child is None or (name == "parametrizations" and "parametrizations" in module._modules):
            continue
        yield name, _without_wrappers(child)


def _without_wrappers(module: nn.Module) -> nn.Module:
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that can be a layer, by its path, in the order of definition; a shared module has several paths.

    Wrappers inside the network (a compiled block, a checkpoint wrapper) are looked through and add nothing to a path.
    The modules of ``torch.nn.utils.parametrizations`` (``spectral_norm``, ``weight_norm``) compute weights, so they are
    no layers.
    """
    found: dict[str, nn.Module] = {}

    def visit(path: str, module: nn.Module) -> None:
        found[path] = module
        for name, child in children_inside(module):
            visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return found


def plain_path(model: nn.Module, path: str) -> str:
    """The path of ``named_layers`` for a path of ``model.named_modules()``, which also names the wrappers inside."""
    parts: list[str] = []
    module: nn.Module = model
    for part in path.split("."):
        child = None if isinstance(module, torch.jit.ScriptModule) else module._modules.get(part)
        if child is None:
            return path
        if child is not _inside(module):
            parts.append(part)
        module = child
    return ".".join(parts)


# --- compiled parts -----------------------------------------------------------------------------------------------

_ABSENT: Any = object()
_swapped: dict[int, tuple[int, dict[str, Any]]] = {}
"""By id of a module that runs uncompiled: the number of blocks that ask for it, and its attributes before."""
_swapping = threading.Lock()


def compiled_parts(model: nn.Module) -> list[nn.Module]:
    """The modules of a network, and the network itself, that ``torch.compile`` runs as graphs."""
    return [module for module in model.modules() if id(module) in _swapped or _uncompiled(module)]


@contextmanager
def eagerly(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Run the ``compiled_parts`` of a network uncompiled inside the ``with`` block.

    A graph that was compiled without hooks runs none, so a layer inside it would look as if it had not run. Numbers
    differ by rounding only. Blocks may overlap, also in several threads: the last to end puts everything back.
    """
    parts = list(parts)
    with _swapping:
        for module in parts:
            count, before = _swapped.get(id(module), (0, {}))
            if not count:
                plain = _uncompiled(module)
                before = {name: vars(module).get(name, _ABSENT) for name in plain}
                for name, value in plain.items():
                    object.__setattr__(module, name, value)
            _swapped[id(module)] = (count + 1, before)
    try:
        yield
    finally:
        with _swapping:
            for module in parts:
                count, before = _swapped.pop(id(module))
                if count > 1:
                    _swapped[id(module)] = (count - 1, before)
                    continue
                for name, value in before.items():
                    if value is _ABSENT:
                        object.__delattr__(module, name)
                    else:
                        object.__setattr__(module, name, value)


def _uncompiled(module: nn.Module) -> dict[str, Any]:
    """Attributes that make one module run uncompiled; empty if nothing of it is compiled."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    own = vars(module)
    kind: Any = type(module)
    inner = own.get("_modules", {}).get("_orig_mod")
    if inner is not None:  # torch.compile(module)
        return {"forward": inner} if own.get("forward") is not inner else {}
    attributes: dict[str, Any] = {
        name: MethodType(original, module) for name, original in _compiled_methods(kind) if name not in own
    }
    for name, value in own.items():  # module.forward = torch.compile(module.forward)
        if isinstance(value, FunctionType) and (original := _original(value)) is not None:
            attributes[name] = original
    if own.get("_compiled_call_impl") is not None:  # module.compile()
        attributes["_compiled_call_impl"] = None
    return attributes


@functools.lru_cache(maxsize=4096)
def _compiled_methods(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Methods of a class that stand under ``@torch.compile``, and what they compile."""
    found: dict[str, Any] = {}
    for cls in kind.__mro__:
        for name, value in vars(cls).items():
            found.setdefault(name, _original(value) if isinstance(value, FunctionType) else None)
    return tuple((name, original) for name, original in found.items() if original is not None)


def _original(function: Any) -> Any:
    """The function that ``torch.compile`` wrapped; None if it did not."""
    if getattr(function, "_torchdynamo_disable", False):
        return None
    return getattr(function, "_torchdynamo_orig_callable", None)
