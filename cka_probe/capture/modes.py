"""Put models in eval mode for one block, and back: also modules whose own `train` method changes weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["evaluated", "frozen", "modes_restored"]


@contextmanager
def evaluated(*models: nn.Module | None) -> Iterator[None]:
    """Put the models in eval mode, and back after the block, also after an exception.

    A module may have a ``train`` or ``eval`` method of its own, which does more than set the mode: LoRA layers merge
    their weights in eval mode, detectors keep their batch norm frozen. Such a module is put back by calling its method.
    Weights, buffers, ``requires_grad`` flags and plain attributes that the method changed then get back the bits that
    they had, because merging and unmerging is not exact. A model that is in eval mode as a whole is not touched.
    """
    modules = _modules(models)
    awake = [model for model in models if model is not None and any(m.training for m in model.modules())]
    own = [module for module in modules if _has_own_mode(module)] if awake else []
    before = [(module, module.training) for module in modules]
    changed = _Snapshot(own)
    try:
        for model in awake:
            model.eval()
        changed.forget_unchanged()  # before the forward passes, so that two copies of the weights exist only here
        yield
    finally:
        rest = _Snapshot(own)
        try:
            _put_back(before)
        finally:
            rest.restore()
            changed.restore()  # last: `rest` holds what eval() made of the tensors in it


@contextmanager
def frozen(model: nn.Module | None) -> Iterator[None]:
    """Put the model in eval mode and let no parameter require a gradient; restore both after the block."""
    parameters = [] if model is None else list(model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    with evaluated(model):
        try:
            if model is not None:
                model.requires_grad_(False)
            yield
        finally:
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)


@contextmanager
def modes_restored(*models: nn.Module | None) -> Iterator[None]:
    """Restore the train or eval mode of every submodule afterwards, also after an exception.

    The block may change modes and weights. A module with a ``train`` or ``eval`` method of its own is put back by
    calling it.
    """
    before = [(module, module.training) for module in _modules(models)]
    try:
        yield
    finally:
        _put_back(before)


def _modules(models: Sequence[nn.Module | None]) -> list[nn.Module]:
    """All modules of the models, parents before their children, each once."""
    found = {id(module): module for model in models if model is not None for module in model.modules()}
    return list(found.values())


def _has_own(module: nn.Module, method: str) -> bool:
    return method in vars(module) or getattr(type(module), method) is not getattr(nn.Module, method)


def _has_own_mode(module: nn.Module) -> bool:
    return _has_own(module, "train") or _has_own(module, "eval")


HARMLESS = frozenset(
    {"super", "__class__", "train", "eval", "mode", "training", "requires_grad", "requires_grad_"}
    | {"modules", "children", "named_modules", "named_children", "parameters", "named_parameters", "values", "items"}
    | {"isinstance", "getattr", "hasattr", "range", "len", "torch", "nn", "Module", "BatchNorm1d", "BatchNorm2d"}
    | {"BatchNorm3d", "_BatchNorm", "SyncBatchNorm", "FrozenBatchNorm2d", "LayerNorm", "GroupNorm", "Dropout"}
)
"""Names in a ``train`` method that only sets modes and freezes parameters."""

TRUSTED = ("torch", "torchvision", "timm", "transformers")
"""Libraries whose own ``train`` methods change no weights. Every network of transformers has one."""


def _may_change_weights(module: nn.Module) -> bool:
    """Whether the ``train`` or ``eval`` of a module may do more than set modes and freeze parameters.

    Their weights are copied, which takes time and memory. So methods that are known or plain are left out.
    """
    for name in ("train", "eval"):
        if not _has_own(module, name):
            continue
        method = vars(module).get(name) or getattr(type(module), name)
        if getattr(method, "__module__", "").partition(".")[0] in TRUSTED:
            continue
        code = getattr(getattr(method, "__func__", method), "__code__", None)
        known = HARMLESS.union(module._modules, _plain(module))
        if code is None or not known.issuperset(_names(code)):
            return True
    return False


def _names(code: CodeType) -> set[str]:
    """Global names and attributes that a function uses, with those of the functions inside it."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _put_back(before: Sequence[tuple[nn.Module, bool]]) -> None:
    """Give each module its mode. A parent's own ``train`` also changes its children, so parents come first."""
    try:
        for module, training in before:
            if module.training != training and _has_own_mode(module):
                if training or not _has_own(module, "eval"):
                    module.train(training)
                else:
                    module.eval()
    finally:
        for module, training in before:
            if module.training != training:
                module.training = training


@dataclass
class _Kept:
    """A parameter or buffer, where it belongs, and the bits that it had."""

    place: dict[str, Any]
    name: str
    tensor: Tensor
    data: Tensor
    bits: Tensor

    def changed(self) -> bool:
        same = self.place.get(self.name) is self.tensor and self._in_place()
        return not (same and _same_bits(self.data, self.bits))

    def _in_place(self) -> bool:
        now = self.tensor.data
        return now.data_ptr() == self.data.data_ptr() and now.shape == self.data.shape and now.dtype == self.data.dtype

    def restore(self) -> None:
        self.place[self.name] = self.tensor
        if not self._in_place():
            self.tensor.data = self.data
        if not _same_bits(self.data, self.bits):
            self.data.copy_(self.bits)  # through .data: an autograd graph of the caller stays valid


class _Snapshot:
    """What a ``train`` method of these modules may change: their tensors, plain attributes and flags."""

    def __init__(self, own: Sequence[nn.Module]) -> None:
        self.attributes = [(module, _plain(module)) for module in own]
        self.flags = [
            (p, p.requires_grad) for module in _modules(own) for p in module._parameters.values() if p is not None
        ]
        self.tensors: list[_Kept] = []
        seen: set[int] = set()
        for module in _modules([module for module in own if _may_change_weights(module)]):
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    if tensor is None or id(tensor) in seen or not _is_plain(tensor):
                        continue
                    seen.add(id(tensor))
                    data = tensor.data
                    self.tensors.append(_Kept(place, name, tensor, data, _copy(data)))

    def forget_unchanged(self) -> None:
        """Keep only what differs now, and free the rest."""
        self.flags = [(parameter, flag) for parameter, flag in self.flags if parameter.requires_grad != flag]
        self.tensors = [kept for kept in self.tensors if kept.changed()]
        self.attributes = [(module, _changed(module, plain)) for module, plain in self.attributes]

    def restore(self) -> None:
        """Set what differs to what it was."""
        for module, plain in self.attributes:
            for name, value in _changed(module, plain).items():
                vars(module)[name] = value
        with torch.no_grad():
            for kept in self.tensors:
                if kept.changed():
                    kept.restore()
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor has its numbers in its own memory: not offloaded (meta), sparse, quantised or of a subclass."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.is_quantized:
        return False
    return bool(tensor.layout is torch.strided)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are numbers, texts or None, without the mode."""
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, plain) and name != "training"}


def _changed(module: nn.Module, plain: dict[str, Any]) -> dict[str, Any]:
    now = vars(module)
    return {name: value for name, value in plain.items() if name not in now or now[name] is not value}


def _copy(data: Tensor) -> Tensor:
    """A copy beside the tensor, or in host memory if its GPU is full."""
    try:
        return data.clone()
    except torch.OutOfMemoryError:
        return data.cpu()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have equal bits: 0.0 differs from -0.0, NaN equals itself."""
    a = a.to(b.device)
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
