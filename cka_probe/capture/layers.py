"""Select layers by name, glob, regular expression, class, "leaves", "blocks" or predicate; list them in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .layer_names import CALL, glob_pattern, spelt, unknown_layer
from .leaves import block_layers, has_forward, leaf_layers
from .nearest import nearest_hint
from .state import borrowed
from .trees import first_tensor
from .wrappers import named_layers, plain_path, unwrap

__all__ = [
    "Layers",
    "NoLayerError",
    "Selection",
    "block_layers",
    "layer_parts",
    "layer_table",
    "leaf_layers",
    "select_layers",
    "unknown_layer",
    "unwrap",
]

Layers = str | type[nn.Module] | Callable[[str, nn.Module], bool] | Mapping[Any, str] | Sequence[Any]
"""Type of the argument ``layers``; a sequence may mix the other forms."""


class NoLayerError(ValueError):
    """A part of ``layers`` selects no layer of the model, or a part of ``exclude`` removes none."""


@dataclass(frozen=True)
class Selection:
    """The selected modules, and how their calls are named.

    Attributes
    ----------
    paths : tuple of str
        Paths of the modules, each module once.
    named : frozenset of str
        Names of the layers that the caller wrote out: these must run, the others need not.
    titles : mapping of str to str
        Names of the layers that are not called by their path.
    only, never : mapping of str to frozenset of int
        For some paths, the calls that alone are selected, and those that are left out.
    """

    paths: tuple[str, ...]
    named: frozenset[str]
    titles: Mapping[str, str]
    only: Mapping[str, frozenset[int]]
    never: Mapping[str, frozenset[int]]

    def name(self, path: str, call: int = 1) -> str:
        """Name of one call of a layer: "layer1.0.relu", its second call "layer1.0.relu#2"."""
        title = self.titles.get(path, path)
        return title if call == 1 else f"{title}#{call}"

    def wants(self, path: str, call: int) -> bool:
        """Whether this call of a selected layer is selected."""
        only = self.only.get(path)
        return (only is None or call in only) and call not in self.never.get(path, ())

    def is_named(self, name: str) -> bool:
        """Whether the caller wrote out the layer of a call with this name."""
        return name in self.named or CALL.sub("", name) in self.named


@dataclass(frozen=True)
class _Picked:
    """What one part of ``layers`` selects."""

    paths: Sequence[str]
    exact: bool = False
    call: int | None = None
    title: str | None = None


def layer_parts(layers: Layers) -> list[Any]:
    """The parts of ``layers`` as a list, so that an iterator can be used for several models.

    Raises
    ------
    TypeError
        If ``layers`` is neither a single part nor an iterable of parts.
    """
    if isinstance(layers, str | type | Mapping | nn.Module) or callable(layers):
        return [layers]
    if not isinstance(layers, Iterable) or getattr(layers, "ndim", 1) == 0:
        raise TypeError(f"`layers` must be a name, pattern, type, function or a list of these, got {layers!r}.")
    return list(layers)


def select_layers(model: nn.Module, layers: Layers = "leaves", exclude: Layers | None = None) -> Selection:
    r"""Paths of the modules of ``model`` that ``layers`` selects, without those that ``exclude`` selects.

    Parameters
    ----------
    model : torch.nn.Module
        The network. It may be wrapped (DataParallel, torch.compile).
    layers : str, type, callable, mapping or sequence of these
        "leaves" (every module that is a layer of its own), "blocks" (the outermost repeated blocks), a module path
        ("layer1.0.conv1"; "" or "model" is the network itself; "relu#2" is the second call of "relu"), a glob
        ("layer*.*.conv?": ``*`` stays between two dots, ``**`` crosses them), a regular expression after "re:"
        ("re:layer[12]\..*"), a module class, a predicate of (path, module), or a mapping {layer: new name} whose
        layers are called by the new names.
    exclude : same forms as `layers`, optional
        Layers to leave out.

    Returns
    -------
    Selection
        Paths in the order of the sequence, and within one pattern in the order of definition. No path appears twice.

    Raises
    ------
    NoLayerError
        If a part of ``layers`` selects no layer, or a part of ``exclude`` removes none. It is a ValueError, whose
        message names the layers nearest to a misspelt path.
    ValueError
        If ``layers`` is empty, ``exclude`` removes all of it, a renamed layer is not exactly one, or two layers would
        have one name.
    TypeError
        If ``layers``, ``exclude`` or one of their parts is of another type, or ``model`` is no module or in
        TorchScript.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> select_layers(net, nn.Linear).paths
    ('0', '2')
    >>> select_layers(net, exclude=nn.ReLU).paths
    ('0', '2')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"A model must be a torch.nn.Module, got {type(model).__name__}.")
    model = unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("A model in TorchScript runs no hooks. Pass the module that it was made from.")
    return _Selecting(model).select(layers, exclude)


class _Selecting:
    """One selection of layers of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(model).__name__
        self.modules = named_layers(model)
        self.root = "model" if "model" not in self.modules else "(model)"

    def select(self, layers: Layers, exclude: Layers | None) -> Selection:
        first: dict[int, str] = {}  # by id of a module, the path under which it is selected
        only: dict[str, set[int] | None] = {}
        written: dict[tuple[str, int | None], None] = {}
        titles = {"": self.root}
        for part in layer_parts(layers):
            for picked in self._renamed(part) if isinstance(part, Mapping) else [self._pick(part, "layers")]:
                for path in picked.paths:
                    own = first.setdefault(id(self.modules[path]), path)
                    if picked.title is not None:
                        self._give_title(titles, own, path, picked.title)
                    if picked.call is None:
                        only[own] = None
                    elif (calls := only.setdefault(own, set())) is not None:
                        calls.add(picked.call)
                    if picked.exact:
                        written[own, picked.call] = None
        if not first:
            raise ValueError("`layers` is empty: name at least one layer.")
        never = self._leave_out(exclude, first, only)
        selection = Selection(
            tuple(only),
            frozenset(),
            {path: title for path, title in titles.items() if path in only},
            {path: frozenset(calls) for path, calls in only.items() if calls is not None},
            {path: frozenset(calls) for path, calls in never.items() if path in only},
        )
        _check_names(selection)
        named = {selection.name(path, call or 1) for path, call in written if path in only}
        return Selection(selection.paths, frozenset(named), selection.titles, selection.only, selection.never)

    def _renamed(self, part: Mapping[Any, str]) -> list[_Picked]:
        found = []
        for layer, title in part.items():
            picked = self._pick(layer, "layers")
            if not isinstance(title, str) or not title or CALL.search(title):
                raise ValueError(
                    f"`layers`: {title!r} cannot be the name of layer {layer!r}. A mapping {{layer: name}} renames "
                    "layers; a name is a text that does not end in # and a number."
                )
            if len({id(self.modules[path]) for path in picked.paths}) != 1 or picked.call is not None:
                listed = ", ".join(map(repr, picked.paths[:3])) + ", ..." * (len(picked.paths) > 3)
                what = (
                    "selects one call of a layer" if picked.call else f"selects {len(picked.paths)} layers ({listed})"
                )
                raise ValueError(f"`layers`: {layer!r} {what}, but only exactly one layer can be called {title!r}.")
            found.append(_Picked(picked.paths[:1], picked.exact, None, title))
        return found

    def _give_title(self, titles: dict[str, str], own: str, path: str, title: str) -> None:
        if titles.get(own, title) != title and own in titles and own != "":
            other = f" (it is the same module as {own!r})" if path != own else ""
            raise ValueError(f"`layers` gives layer {path!r}{other} two names: {titles[own]!r} and {title!r}.")
        titles[own] = title

    def _leave_out(
        self, exclude: Layers | None, first: dict[int, str], only: dict[str, set[int] | None]
    ) -> dict[str, set[int]]:
        """Remove layers from ``only``, and return the calls that are left out of those that stay."""
        never: dict[str, set[int]] = {}
        if exclude is None:
            return never
        removed: set[str] = set()
        for part in layer_parts(exclude):
            picked = self._pick(part, "exclude")
            owners = (first.get(id(self.modules[path])) for path in picked.paths)
            paths = {path for path in owners if path is not None}
            if not paths:
                raise NoLayerError(self._idle(part, picked, list(only)))
            for path in paths:
                if picked.call is None:
                    removed.add(path)
                elif (calls := only[path]) is not None:
                    calls.discard(picked.call)
                    removed |= set() if calls else {path}
                else:
                    never.setdefault(path, set()).add(picked.call)
        for path in removed:
            only.pop(path, None)
        if not only:
            raise ValueError("`exclude` removes every layer that `layers` selects.")
        return never

    def _idle(self, part: Any, picked: _Picked, selected: list[str]) -> str:
        inside = [one for one in selected if any(one.startswith(f"{path}.") for path in picked.paths if path)]
        hint = f"To leave out what is inside it, write {part + '.**'!r}." if inside and isinstance(part, str) else ""
        hint = hint or nearest_hint(str(part), selected, kind="The selected layers")
        return f"`exclude`: {_shown(part)} removes none of the layers of {self.name} that `layers` selects. {hint}"

    def _pick(self, part: Any, role: str) -> _Picked:
        if isinstance(part, str):
            return self._pick_text(str(part), role)
        if isinstance(part, type):
            if not issubclass(part, nn.Module):
                raise TypeError(f"`{role}`: {part.__name__} is not a torch.nn.Module class.")
            found = [name for name, module in self.modules.items() if isinstance(module, part)]
            if not found:
                raise NoLayerError(f"{self.name} has no layer of type {part.__name__}.")
            return _Picked(found)
        if isinstance(part, nn.Module):
            path = next((repr(name) for name, module in self.modules.items() if module is part), "its path")
            raise TypeError(f"`{role}` holds a {type(part).__name__} module. Name it by its path: {path}.")
        if callable(part):
            found = [name for name, module in self.modules.items() if part(name, module)]
            if not found:
                raise NoLayerError(f"The predicate in `{role}` selects no layer of {self.name}.")
            return _Picked(found)
        raise TypeError(f"`{role}` may hold names, patterns, types and functions, not {type(part).__name__}.")

    def _pick_text(self, part: str, role: str) -> _Picked:
        if part == "leaves":
            return _Picked(leaf_layers(self.model))
        if part == "blocks":
            found = block_layers(self.model)
            if not found:
                raise NoLayerError(
                    f"{self.name} has no repeated blocks: no modules with children in a Sequential or "
                    'ModuleList, nor three of one class with one parent. Use layers="leaves" or name its layers.'
                )
            return _Picked(found)
        if (path := self._path(part)) is not None:
            if isinstance(self.modules[path], torch.jit.ScriptModule):
                raise ValueError(
                    f"Layer {path!r} of {self.name} is in TorchScript, which runs no hooks. Choose a module around it."
                )
            return _Picked([path], exact=True)
        if (call := CALL.search(part)) and (path := self._path(CALL.sub("", part))) is not None:
            return _Picked([path], exact=True, call=int(call[1]))
        if part.startswith("re:"):
            try:
                pattern = re.compile(part[3:])
            except re.error as error:
                raise ValueError(f"`{role}`: {part[3:]!r} is not a regular expression: {error}.") from error
        elif any(c in part for c in "*?["):
            pattern = glob_pattern(part)
        else:
            raise NoLayerError(unknown_layer(part, self.modules, self.name, self.model))
        found = [name for name in self.modules if name and pattern.fullmatch(name)]
        if not found:
            raise NoLayerError(f"The pattern {part!r} matches no layer of {self.name}. {self._pattern_hint(part)}")
        # A pattern that crosses dots also fits lists of modules, which never run.
        return _Picked([name for name in found if has_forward(self.modules[name])] or found)

    def _path(self, text: str) -> str | None:
        """Path of ``named_layers`` that a text names; None if there is none."""
        if text in self.modules:
            return text
        if text in (self.root, ""):
            return ""
        plain = plain_path(self.model, text)
        return plain if plain in self.modules else None

    def _pattern_hint(self, part: str) -> str:
        if not part.startswith("re:"):
            wide = re.sub(r"\*+", "**", part)
            if wide != part and any(glob_pattern(wide).fullmatch(name) for name in self.modules if name):
                return f"`*` stays between two dots and `**` crosses them: write {wide!r}."
            if (path := spelt(part)) in self.modules:
                return f"Did you mean {path!r}?"
        return nearest_hint(part, self.modules, kind="Its layers")


def _check_names(selection: Selection) -> None:
    """Raise ValueError if two layers have one name."""
    owners: dict[str, str] = {}
    for path in selection.paths:
        other = owners.setdefault(selection.name(path), path)
        if other != path:
            raise ValueError(f"`layers` gives {other!r} and {path!r} the same name, {selection.name(path)!r}.")


def _shown(part: Any) -> str:
    return part.__name__ if isinstance(part, type) else repr(part)


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

    seen: set[int] = set()
    modules: dict[str, nn.Module] = {}
    for name, module in named_layers(model).items():
        if name and id(module) not in seen:
            modules[name] = module
            seen.add(id(module))
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
