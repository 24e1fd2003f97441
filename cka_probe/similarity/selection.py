"""Find rows and columns of a similarity matrix by name; select and rename them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..capture.nearest import nearest_hint

if TYPE_CHECKING:
    from .matrix import SimilarityMatrix

__all__ = ["UnknownLayerError", "changed", "one_cell", "renamed", "selected"]

Matrix = TypeVar("Matrix", bound="SimilarityMatrix")
Names = tuple[tuple[str, ...], tuple[str, ...] | None]
"""Layers of an axis, and their models if there are several."""


class UnknownLayerError(KeyError):
    """A name that is not a row or column; its text is a sentence, not the quoted key of other KeyErrors."""

    def __str__(self) -> str:
        return str(self.args[0])


def changed(matrix: Matrix, **fresh: Any) -> Matrix:
    """The same matrix with other fields.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix; it stays as it is.
    **fresh
        The fields that differ, by name.
    """
    return type(matrix)(**{field.name: getattr(matrix, field.name) for field in fields(matrix)} | fresh)


def one_cell(matrix: SimilarityMatrix, key: Any) -> float:
    """Value of the cell with that (row, column).

    Raises
    ------
    TypeError
        If the key is no pair of names.
    KeyError
        If a name is unknown, or stands for several layers.
    """
    if not isinstance(key, tuple) or len(key) != 2:
        raise TypeError(
            f'Give a row and a column, result["row", "column"], got {key!r}. '
            'For a whole row: result.select(rows="name"); for positions: result.values[0, 1].'
        )
    at = [
        _one(side, names, part)
        for side, names, part in zip(("row", "column"), (_rows(matrix), _columns(matrix)), key, strict=True)
    ]
    return float(matrix.values[at[0], at[1]])


def _one(side: str, names: Names, key: Any) -> int:
    if not isinstance(key, str) and not _is_pair(key):
        raise TypeError(
            f"A {side} is a layer name, or (model, layer) if there are several models, got {key!r}. "
            "For positions use result.values[0, 1]."
        )
    found = _exactly(names, key)
    if not found:
        raise UnknownLayerError(f"There is no {side} {key!r}. {_hint(side, names, key)}")
    if len(found) > 1:
        layers, models = names
        if models is None:
            raise UnknownLayerError(f"{len(found)} {side}s are called {key!r}; use result.values with their positions.")
        choices = " or ".join(repr((models[i], layers[i])) for i in found[:4])
        raise UnknownLayerError(f"{key!r} is a {side} of several models. Say which: {choices}.")
    return found[0]


def selected(matrix: Matrix, rows: Any, columns: Any) -> Matrix:
    """The matrix of the chosen rows and columns; see :meth:`SimilarityMatrix.select`.

    Raises
    ------
    TypeError
        If a selector is not a name, a pattern, a (model, layer) or a sequence of these.
    ValueError
        If one matches nothing; the message gives the nearest names.
    """
    r = _matches("row", _rows(matrix), rows)
    c = _matches("column", _columns(matrix), columns)
    cells = np.ix_(r, c)

    def cut(array: Any) -> Any:
        return None if array is None else array[cells]

    def take(names: tuple[str, ...] | None, chosen: list[int]) -> Any:
        return None if names is None else [names[i] for i in chosen]

    meta = dict(matrix.meta)
    degrees = np.asarray(meta.get("degrees_of_freedom", 0))
    if degrees.shape == matrix.shape:  # one number for each cell
        meta["degrees_of_freedom"] = degrees[cells]
    elif degrees.ndim:
        meta["degrees_of_freedom"] = np.broadcast_to(degrees, matrix.shape)[cells]
    return changed(
        matrix,
        values=matrix.values[cells],
        rows=take(matrix.rows, r),
        columns=take(matrix.columns, c),
        standard_error=cut(matrix.standard_error),
        p_value=cut(matrix.p_value),
        chance=cut(matrix.chance),
        meta=meta,
        row_models=take(matrix.row_models, r),
        column_models=take(matrix.column_models, c),
        extra={name: array[cells] for name, array in matrix.extra.items()},
    )


def _matches(side: str, names: Names, wanted: Any) -> list[int]:
    """Indices of the layers that the selectors name, in the order of the selectors, each once."""
    layers, models = names
    if wanted is None:
        return list(range(len(layers)))
    if isinstance(wanted, str) or (models is not None and _is_pair(wanted) and isinstance(wanted, tuple)):
        parts: list[Any] = [wanted]
    elif isinstance(wanted, Iterable) and not isinstance(wanted, bytes | Mapping):
        parts = list(wanted)
    else:
        raise TypeError(
            f"`{side}s` must be a name, a pattern, (model, layer), or a list of these, got {type(wanted).__name__}."
        )
    chosen: dict[int, None] = {}
    for part in parts:
        if not isinstance(part, str) and not (models is not None and _is_pair(part)):
            raise TypeError(f"`{side}s` must hold names, patterns or (model, layer), got {part!r}.")
        found = _exactly(names, part) or _by_pattern(names, part)
        if not found:
            raise ValueError(f"No {side} matches {part!r}. {_hint(side, names, part)}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _exactly(names: Names, key: Any) -> list[int]:
    """Indices of a layer name, of a label "model: layer", or of a (model, layer)."""
    layers, models = names
    if not isinstance(key, str):
        model, layer = key
        return (
            []
            if models is None
            else [i for i, at in enumerate(zip(models, layers, strict=True)) if at == (model, layer)]
        )
    found = [i for i, layer in enumerate(layers) if layer == key]
    if not found and models is not None:
        found = [i for i, at in enumerate(zip(models, layers, strict=True)) if f"{at[0]}: {at[1]}" == key]
    return found


def _by_pattern(names: Names, part: Any) -> list[int]:
    layers, models = names
    if not isinstance(part, str):
        model, layer = map(_pattern, part)
        assert models is not None
        return [i for i, at in enumerate(zip(models, layers, strict=True)) if model(at[0]) and layer(at[1])]
    matches = _pattern(part)
    return [i for i, layer in enumerate(layers) if matches(layer)]


def _pattern(text: str) -> Callable[[str], Any]:
    """Whether a name matches: "re:..." searches a regular expression; in globs "*" and "?" stop at dots, "**" does not.

    Raises
    ------
    ValueError
        If the regular expression is not valid.
    """
    if text.startswith("re:"):
        try:
            return re.compile(text[3:]).search
        except re.error as error:
            raise ValueError(f"{text!r} is not a valid regular expression: {error}.") from error
    if not any(mark in text for mark in "*?["):
        return lambda name: name == text
    regex = "".join(map(_piece, re.findall(r"\*\*|\[!?[^\]]+\]|.", text, re.DOTALL)))
    return re.compile(regex, re.DOTALL).fullmatch


def _piece(part: str) -> str:
    """Regular expression of one piece of a glob: a wildcard, a set of characters, or a character."""
    if part in ("**", "*", "?"):
        return {"**": ".*", "*": "[^.]*", "?": "[^.]"}[part]
    if len(part) == 1:
        return re.escape(part)
    inside = part[1:-1].replace("\\", r"\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"


def _hint(side: str, names: Names, key: Any) -> str:
    layers, models = names
    if isinstance(key, str):
        return nearest_hint(key, dict.fromkeys(layers), kind=f"The {side}s")
    if models is None:
        return f"The {side}s are of one model: give the layer name alone."
    model, layer = key
    if model not in models and not any(mark in model for mark in "*?["):
        near = nearest_hint(model, dict.fromkeys(models), kind="The models")
        return f"{near} A tuple is (model, layer); write a list for several layers."
    of_model = [at for at, m in zip(layers, models, strict=True) if _pattern(model)(m)]
    return nearest_hint(layer, dict.fromkeys(of_model), kind=f"The {side}s of {model!r}")


def renamed(matrix: Matrix, rows: Any, columns: Any) -> Matrix:
    """The matrix with other layer names; see :meth:`SimilarityMatrix.rename`.

    Raises
    ------
    TypeError
        If a name is neither given by a mapping nor a function, or is not a string.
    ValueError
        If a mapping names an unknown layer, or two layers of a model get the same name.
    """
    fresh_rows, fresh_columns = _new_names("row", _rows(matrix), rows), _new_names("column", _columns(matrix), columns)
    return changed(matrix, rows=fresh_rows, columns=fresh_columns)


def _new_names(side: str, names: Names, change: Any) -> list[str]:
    layers, models = names
    fresh = list(layers)
    if change is None:
        return fresh
    if isinstance(change, Mapping):
        for key, name in change.items():
            found = _exactly(names, key) if isinstance(key, str) or _is_pair(key) else []
            if not found:
                hint = _hint(side, names, key) if isinstance(key, str) or _is_pair(key) else "Keys are layer names."
                raise ValueError(f"There is no {side} {key!r} to rename. {hint}")
            for i in found:
                fresh[i] = name
    elif callable(change):
        fresh = [change(layer) for layer in layers]
    else:
        raise TypeError(f"`{side}s` must be a mapping of old to new names or a function, got {type(change).__name__}.")
    for name in fresh:
        if not isinstance(name, str):
            raise TypeError(f"A new name of a {side} must be a string, got {name!r} of type {type(name).__name__}.")
    keys, old = ([(m, n) for m, n in zip(models or [""] * len(fresh), of, strict=True)] for of in (fresh, layers))
    if len(set(keys)) < len(set(old)):
        twice = next(name for i, (_, name) in enumerate(keys) if keys[i] in keys[:i])
        raise ValueError(f"Two {side}s would be called {twice!r}. Give every layer a name of its own.")
    return fresh


def _is_pair(key: Any) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key)


def _rows(matrix: SimilarityMatrix) -> Names:
    return matrix.rows, matrix.row_models


def _columns(matrix: SimilarityMatrix) -> Names:
    return matrix.columns, matrix.column_models
