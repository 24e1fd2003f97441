"""Names of layers as users write them: globs, calls, and what was meant by a name that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from .nearest import nearest, nearest_hint

__all__ = ["CALL", "glob_pattern", "spelt", "unknown_layer"]

CALL = re.compile(r"#([1-9]\d*)$")
"""End of the name of one call of a layer: "relu#2"."""

GROUPS = ("leaves", "blocks")


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """Regular expression of a glob whose ``*``, ``?`` and ``[...]`` match no dot; ``**`` matches any text.

    ``**.`` at the start or after a dot also matches nothing: "**.conv" is "conv" at any depth.
    """
    expression = ""
    for token in re.findall(r"\*\*+\.|\*\*+|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token.startswith("**") and token.endswith("."):
            expression += r"(?:.*\.)?" if not expression or expression.endswith((r"\.", r"\.)?")) else r".*\."
        elif token.startswith("**"):
            expression += ".*"
        elif token in "*?":
            expression += r"[^.]*" if token == "*" else r"[^.]"
        elif len(token) > 1:
            inside = token[1:-1].removeprefix("!").replace("\\", r"\\").replace("[", r"\[")
            inside = rf"\{inside}" if inside.startswith(("]", "^")) else inside
            expression += rf"(?!\.)[{'^' * token.startswith('[!')}{inside}]"
        else:
            expression += re.escape(token)
    return re.compile(expression, re.DOTALL)


def spelt(name: str) -> str:
    """A path as torch would spell it: "layer1[0]/conv1" as "layer1.0.conv1"."""
    return re.sub(r"\[(\d+)\]", r".\1", name.strip().replace("/", ".")).strip(".")


def unknown_layer(name: str, names: Iterable[str], model_name: str, model: nn.Module | None = None) -> str:
    """Message for a layer path that does not exist, with the nearest paths.

    Parameters
    ----------
    name : str
        What the caller wrote.
    names : iterable of str
        Paths of the layers.
    model_name : str
        Name of the model in the message.
    model : torch.nn.Module, optional
        The model, to say what a path of a parametrization is.
    """
    names = [one for one in names if one]
    if ".parametrizations" in f".{name}" and model is not None:
        owner = f".{name}".partition(".parametrizations")[0][1:]
        if isinstance(dict(model.named_modules(remove_duplicate=False)).get(name), nn.Module):
            return f"{name!r} of {model_name} computes a weight, so it is no layer. Choose the layer itself: {owner!r}."
    known = [*names, *GROUPS] if nearest(name, GROUPS) else names
    path = spelt(name)
    while path not in names and "." in path and path.partition(".")[0] in ("model", "module", "net", "self"):
        path = path.partition(".")[2]  # as in the keys of a wrapper's state_dict, or as in code
    hint = f"Did you mean {path!r}?" if path in names else nearest_hint(name, known, kind="Its layers")
    return f"{model_name} has no layer {name!r}. {hint}"
