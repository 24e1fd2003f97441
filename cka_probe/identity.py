"""Identify the ingredients of a run by texts that are equal in every process: settings, functions, models, arrays."""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["UNKNOWN", "array_digest", "differences", "identity", "tensors_digest", "weights_digest"]

UNKNOWN = "cannot be identified"
"""Begins the identity of an object whose state cannot be read, such as an open file. A run with it is not resumed."""

_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    range,
    torch.dtype,
    torch.device,
    torch.Size,
)
_BY_REPR = (
    *(np.generic, np.dtype, np.ufunc, PurePath, enum.Enum, re.Pattern),
    *(types.MethodDescriptorType, types.WrapperDescriptorType),
)
# What belongs to the moment: hooks, modes, and how far a loss is in a run.
_HOOKS = re.compile(r"_.*hooks(_.*)?|_is_full_backward_hook|training|_version|_backend_version|_progress|_weights_now")


def identity(thing: Any) -> str:
    """Text that is equal for equal things in any process, and different if a value, weight or line of code differs.

    Functions and classes of the user's own files count with their code, their closures, their defaults, and the
    numbers, texts, functions and classes of their module that they use. Those of installed packages count with their
    names.

    Parameters
    ----------
    thing : any
        A setting, function, loss, network, array, or a container of them.

    Returns
    -------
    str
        A short description and 12 hexadecimal digits; for a plain value its ``repr``. It begins with ``UNKNOWN`` if the
        thing holds an object that cannot be read.

    Examples
    --------
    >>> identity(0.5), identity(None)
    ('0.5', 'None')
    >>> identity(lambda x: x + 1) == identity(lambda x: x + 2)
    False
    """
    if isinstance(thing, bool | int | float | str | type(None)):
        return repr(thing)
    reader = _Reader()
    reader.add(thing)
    text = _described(thing)
    if reader.unknown is not None:
        return f"{UNKNOWN}: {text} holds {reader.unknown}"
    return f"{text} #{reader.hash.hexdigest()[:12]}"


def weights_digest(model: nn.Module | None) -> str:
    """Hash of the weights and buffers of a model; "none" for None."""
    if model is None:
        return "none"
    result = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            result.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            result.update(_bytes(tensor))
    return result.hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors, whatever their order."""
    result = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        result.update(f"{name} {array_digest(tensors[name])} ".encode())
    return result.hexdigest()


def array_digest(array: np.ndarray | torch.Tensor) -> str:
    """Hash of the shape, the dtype and the bytes of an array."""
    result = hashlib.blake2b(f"{tuple(array.shape)} {array.dtype}".encode(), digest_size=16)
    result.update(_bytes(array))
    return result.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each entry that differs or that cannot be identified; a run is resumed only if there is none.

    Examples
    --------
    >>> differences({"epochs": 2, "seed": 0}, {"epochs": 4, "seed": 0})
    ['epochs was 2 and is now 4']
    """
    found = []
    for key in {**before, **now}:
        if key not in before:
            found.append(f"{key} was not recorded by the version of cka_probe that started the run")
        elif before[key] != now.get(key):
            found.append(f"{key} was {_short(before[key])} and is now {_short(now.get(key))}")
        elif str(before[key]).startswith(UNKNOWN):
            found.append(f"{key} {before[key]}, so it may have changed")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and "#" in value else repr(value)
    return text if len(text) <= 160 else f"{text[:120]} ... {text[-30:]}"


def _described(thing: Any) -> str:
    if isinstance(thing, types.FunctionType | types.MethodType | type | types.BuiltinFunctionType):
        return _name(thing)
    if isinstance(thing, functools.partial):
        given = [*map(_described, thing.args), *(f"{k}={_described(v)}" for k, v in thing.keywords.items())]
        return f"{_described(thing.func)}({', '.join(given)})"
    if isinstance(thing, _PLAIN):
        return repr(thing)
    if isinstance(thing, np.ndarray | torch.Tensor):
        return f"{type(thing).__name__}{tuple(thing.shape)}"
    if isinstance(thing, Mapping | set | frozenset | list | tuple):
        return f"{type(thing).__name__} of {len(thing)}"
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
    return text if len(text) <= 200 and "\n" not in text else type(thing).__qualname__


class _Reader:
    """Feed a thing, and everything that it consists of, into one hash."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self.unknown: str | None = None
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is only valid as long as its object lives

    def add(self, thing: Any) -> None:
        if isinstance(thing, _PLAIN):
            self._text(f"{type(thing).__name__} {thing!r}")
            return
        if id(thing) in self._seen:
            self._text(f"again {self._seen[id(thing)]}")
            return
        self._seen[id(thing)] = len(self._seen)
        self._alive.append(thing)
        self._text(_name(type(thing)))
        self._parts(thing)

    def _text(self, text: str) -> None:
        self.hash.update(text.encode("utf-8", "surrogatepass") + b"\0")

    def _cannot(self, thing: Any) -> None:
        self.unknown = self.unknown or f"a {type(thing).__module__}.{type(thing).__qualname__}"

    def _each(self, things: Iterable[Any]) -> None:
        for thing in things:
            self.add(thing)

    def _pairs(self, mapping: Mapping[Any, Any]) -> None:
        for key, value in sorted(mapping.items(), key=lambda pair: (type(pair[0]).__name__, repr(pair[0]))):
            self.add(key)
            self.add(value)

    def _parts(self, thing: Any) -> None:
        if isinstance(thing, torch.Tensor | np.ndarray):
            if isinstance(thing, np.ndarray) and thing.dtype.hasobject:
                self._each(thing.ravel().tolist())
                return
            try:
                self._text(array_digest(thing))
            except (RuntimeError, NotImplementedError):  # on the meta device, or of a layout without bytes
                self._cannot(thing)
        elif isinstance(thing, _BY_REPR):
            self._text(repr(thing))
        elif isinstance(thing, torch.Generator):
            self._text(str(thing.initial_seed()))
        elif isinstance(thing, logging.Logger):
            self._text(thing.name)
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.MethodType):
            self._each([thing.__func__, thing.__self__])
        elif isinstance(thing, functools.partial):
            self._each([thing.func, thing.args, thing.keywords])
        elif isinstance(thing, types.ModuleType):
            self._text(thing.__name__)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, property):
            self._each([thing.fget, thing.fset])
        elif isinstance(thing, staticmethod | classmethod):
            self.add(thing.__func__)
        elif isinstance(thing, types.BuiltinFunctionType):
            self._text(thing.__qualname__)
            if not isinstance(thing.__self__, types.ModuleType | None):
                self.add(thing.__self__)
        else:
            self._object(thing)

    def _object(self, thing: Any) -> None:
        self.add(type(thing))
        known = False
        if isinstance(thing, Mapping):
            self._pairs(thing)
            known = True
        elif isinstance(thing, set | frozenset):
            self._each(sorted(map(identity, thing)))
            known = True
        elif isinstance(thing, list | tuple):
            self._each(thing)
            known = True
        slots = [name for kind in type(thing).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
        state = {name: getattr(thing, name) for name in slots if hasattr(thing, name) and not name.startswith("__")}
        if hasattr(thing, "__dict__"):
            state |= vars(thing)
        if isinstance(thing, nn.Module):
            state = {name: value for name, value in state.items() if not _HOOKS.fullmatch(name)}
        if not (known or slots or hasattr(thing, "__dict__") or type(thing) is object):
            self._cannot(thing)
            return
        self._pairs(state)

    def _function(self, function: types.FunctionType) -> None:
        self._text(_name(function))
        self._each([function.__defaults__, function.__kwdefaults__])
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # an empty cell: a name that has no value yet
                cells.append(None)
        self._each(cells)
        # Code that was typed in or made by exec may carry the module name of an installed package.
        if _is_installed(function.__module__) and not function.__code__.co_filename.startswith("<"):
            return
        self._code(function.__code__)
        for name in sorted(_global_names(function.__code__)):
            value = function.__globals__.get(name)
            if isinstance(value, _PARTS_OF_CODE) or is_dataclass(value):
                self._text(name)
                self.add(value)

    def _code(self, code: types.CodeType) -> None:
        self._text(f"{sys.version_info[:2]} {code.co_code.hex()} {code.co_names} {code.co_varnames}")
        for constant in code.co_consts:
            if isinstance(constant, frozenset):
                self._each(sorted(map(repr, constant)))
            else:
                self.add(constant)

    def _class(self, kind: type) -> None:
        self._text(_name(kind))
        if _is_installed(kind.__module__):
            return
        self._each(kind.__bases__)
        passed = (
            "__module__",
            "__dict__",
            "__weakref__",
            "__doc__",
            "__qualname__",
            "__firstlineno__",
            "__abstractmethods__",
        )
        for name, value in sorted(vars(kind).items()):
            if name not in passed and not name.startswith("_abc_") and not isinstance(value, _DESCRIPTORS):
                self._text(name)
                self.add(value)


_PARTS_OF_CODE = (
    *(bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type),
    *(types.FunctionType, functools.partial, torch.Tensor, np.ndarray, nn.Module),
)
"""Kinds of values of a module's names that count as parts of the functions that use them."""

_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)


def _name(thing: Any) -> str:
    """Name of a class or function. Without its module if it is the user's: a script may be run or imported."""
    module = getattr(thing, "__module__", None)
    return f"{module}.{thing.__qualname__}" if module is not None and _is_installed(module) else thing.__qualname__


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python, to cka_probe or to an installed package."""
    if module is None:
        return True
    top = module.partition(".")[0]
    if top == __package__ or (top in sys.stdlib_module_names and top != "__main__"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return top != "__main__" and top in sys.builtin_module_names
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    path = Path(file).resolve()
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders) or "site-packages" in path.parts


def _bytes(array: np.ndarray | torch.Tensor) -> bytes:
    if isinstance(array, torch.Tensor):
        # As uint8, because numpy has no bfloat16.
        dense = array.detach().to_dense() if array.layout != torch.strided else array.detach()
        return dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(array).tobytes()
