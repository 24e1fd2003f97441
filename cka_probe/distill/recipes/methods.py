"""Distillation methods by name, and sums of them, for recipes and tables. Importing this module loads no torch."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...capture.nearest import nearest_hint

__all__ = ["METHODS", "Method", "build_loss", "check_options", "default_ce_weight", "is_method", "parts_of", "title_of"]


class Method(NamedTuple):
    """A method: its usual name, the module and the class of its loss, and its default weight of the cross-entropy."""

    title: str
    module: str | None
    loss: str | None
    ce_weight: float = 1.0


METHODS: Mapping[str, Method] = {
    "ce": Method("CE", None, None),
    "kd": Method("KD", "baselines", "KDLoss", 0.1),
    "fcka": Method("FCKA", "losses", "FeatureCKALoss"),
    "lcka": Method("LCKA", "losses", "LogitCKALoss"),
    "rcka": Method("RCKA", "losses", "RCKALoss"),
    "signs": Method("signs", "losses", "SignLoss"),
    "dkd": Method("DKD", "baselines", "DKDLoss"),
    "dist": Method("DIST", "baselines", "DISTLoss"),
    "sp": Method("SP", "baselines", "SPLoss"),
    "rkd": Method("RKD", "baselines", "RKDLoss"),
    "fitnet": Method("FitNet", "baselines", "FitNetLoss"),
    "cc": Method("CC", "baselines", "CCLoss"),
    "at": Method("AT", "baselines", "ATLoss"),
    "pkd": Method("PKD", "baselines", "PKDLoss"),
    "cwd": Method("CWD", "baselines", "CWDLoss"),
}

# The arguments of `ramp`, and what each must be.
RAMP = {"to": "a number of at least 0", "until": "a number above 0 and at most 1", "start": "a number of at least 0"}
SHAPES = ("linear", "cosine")


def parts_of(name: str) -> list[str]:
    """The methods of a name: ["rcka", "kd"] of "rcka+kd".

    >>> parts_of("rcka+kd"), parts_of("kd")
    (['rcka', 'kd'], ['kd'])
    """
    return [part.strip() for part in name.split("+")]


def is_method(name: str) -> bool:
    """Whether a name is a method or a sum of methods."""
    try:
        check_options(name, {})
    except ValueError:
        return False
    return True


def title_of(name: str) -> str:
    """The usual name of a method or of a sum: "RCKA + KD" of "rcka+kd"; an unknown name is given back."""
    return " + ".join(METHODS[part].title if part in METHODS else part for part in parts_of(name))


def default_ce_weight(name: str) -> float:
    """Weight of the cross-entropy if a recipe names none: 1 for sums, else that of the method's publication."""
    return 1.0 if len(parts_of(name)) > 1 else METHODS[name].ce_weight


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if the method or one of its options does not exist.

    Parameters
    ----------
    name : str
        A key of `METHODS`, or several joined by "+".
    options : mapping
        Keyword arguments of the loss; those of a sum by the names of its parts.

    Raises
    ------
    ValueError
        If there is no such method, or its loss has no such option, or a ramp is not complete. The message names the
        nearest ones.
    """
    parts = parts_of(name)
    for part in parts:
        if part not in METHODS:
            raise ValueError(f"there is no method {part!r}. {nearest_hint(part, METHODS, most=1)}")
    if len(parts) == 1:
        _check_own_options(name, options)
        return
    if "ce" in parts:
        raise ValueError(f"{name}: the cross-entropy is part of every method; set its weight by `ce_weight`")
    if len(set(parts)) < len(parts):
        raise ValueError(f"{name}: each method can be in a sum once")
    for part, own in options.items():
        if part not in parts:
            raise ValueError(
                f"{name} has no option {part!r}. Options of a sum belong to one of its parts, in a section of its own, "
                f"such as [loss.{parts[-1]}]"
            )
        if not isinstance(own, Mapping):
            raise ValueError(f"{part} is a part of {name}, and its options are a section [loss.{part}], got {own!r}")
        _check_own_options(part, own)


def _check_own_options(name: str, options: Mapping[str, Any]) -> None:
    if not options:
        return
    factory = _factory(name)
    known = [] if factory is None else list(inspect.signature(factory).parameters)
    for option, value in options.items():
        if option in METHODS:
            raise ValueError(f'{name} has no option {option!r}. The sum of both is name = ["{name}", "{option}"]')
        if option not in known:
            hint = nearest_hint(option, ["ce_weight", "layers", *known], most=1)
            raise ValueError(f"{name} has no option {option!r}. {hint}")
        if isinstance(value, Mapping):
            _check_ramp(f"{name}.{option}", value)


def _check_ramp(key: str, table: Mapping[str, Any]) -> None:
    """Raise ValueError if a table is no ramp such as { to = 15, until = 0.5 }."""
    example = f"A weight that grows during the run is written {key.rpartition('.')[2]} = {{ to = 15, until = 0.5 }}"
    for argument, value in table.items():
        if argument == "shape":
            if value not in SHAPES:
                raise ValueError(f'{key}.shape must be "linear" or "cosine", got {value!r}. {example}')
            continue
        if argument not in RAMP:
            raise ValueError(f"{key} has no option {argument!r}. {nearest_hint(argument, [*RAMP, 'shape'])} {example}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < float("inf") or (argument == "until" and not 0 < value <= 1):
            raise ValueError(f"{key}.{argument} must be {RAMP[argument]}, got {value!r}. {example}")
    if "to" not in table:
        raise ValueError(f"{key}: `to` is missing. {example}")


def build_loss(name: str, options: Mapping[str, Any]) -> Any:
    """The loss of a method; None for "ce", which trains on the labels alone.

    Parameters
    ----------
    name : str
        A key of `METHODS`, or several joined by "+" for the sum of their losses.
    options : mapping
        Keyword arguments of the loss; those of a sum by the names of its parts. A kernel is text, such as
        "rbf(fraction=0.5)"; a weight may be a ramp, such as {"to": 15, "until": 0.5}.

    Returns
    -------
    torch.nn.Module or None
        The loss.

    Raises
    ------
    ValueError
        If the method or an option does not exist, or a value is out of range.
    TypeError
        If a value has the wrong type.

    Examples
    --------
    >>> build_loss("kd", {"temperature": 2})
    KDLoss(temperature=2.0, weight=0.9)
    """
    check_options(name, options)
    parts = parts_of(name)
    if len(parts) > 1:
        return functools.reduce(operator.add, [build_loss(part, options.get(part, {})) for part in parts])
    factory = _factory(name)
    if factory is None:
        return None
    try:
        return factory(**{option: _value(option, value) for option, value in options.items()})
    except (TypeError, ValueError) as error:
        raise type(error)(f"loss {name}: {error}") from error


def _value(option: str, value: Any) -> Any:
    """What a loss is given for the value of a recipe."""
    if option == "kernel" and isinstance(value, str):
        from ...estimators.kernels import kernel_from_name

        return kernel_from_name(value)
    if isinstance(value, Mapping):
        from ..losses.weight_schedules import ramp

        return ramp(**value)
    return value


def _factory(name: str) -> Callable[..., Any] | None:
    method = METHODS[name]
    if method.module is None or method.loss is None:
        return None
    return getattr(importlib.import_module(f"..{method.module}", __package__), method.loss)
