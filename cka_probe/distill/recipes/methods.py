"""Distillation methods by name, for recipes and tables. Importing this module loads no torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...capture.nearest import nearest_hint

__all__ = ["METHODS", "Method", "build_loss", "check_options"]


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


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if the method or one of its options does not exist.

    Parameters
    ----------
    name : str
        A key of `METHODS`.
    options : mapping
        Keyword arguments of the loss.

    Raises
    ------
    ValueError
        If there is no such method, or its loss has no such option. The message names the nearest ones.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}. {nearest_hint(name, METHODS, most=1)}")
    if not options:
        return
    factory = _factory(name)
    known = [] if factory is None else list(inspect.signature(factory).parameters)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}. {nearest_hint(option, ['ce_weight', *known], most=1)}")


def build_loss(name: str, options: Mapping[str, Any]) -> Any:
    """The loss of a method; None for "ce", which trains on the labels alone.

    Parameters
    ----------
    name : str
        A key of `METHODS`.
    options : mapping
        Keyword arguments of the loss; a kernel is text, such as "rbf(fraction=0.5)".

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
    """
    check_options(name, options)
    factory = _factory(name)
    if factory is None:
        return None
    chosen = dict(options)
    if isinstance(chosen.get("kernel"), str):
        from ...estimators.kernels import kernel_from_name

        chosen["kernel"] = kernel_from_name(chosen["kernel"])
    try:
        return factory(**chosen)
    except (TypeError, ValueError) as error:
        raise type(error)(f"loss {name}: {error}") from error


def _factory(name: str) -> Callable[..., Any] | None:
    method = METHODS[name]
    if method.module is None or method.loss is None:
        return None
    return getattr(importlib.import_module(f"..{method.module}", __package__), method.loss)
