"""MkDocs hook: one reference page for each public name, under its public path, and an index of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

__all__ = ["PACKAGES", "defined_at", "on_files", "pages", "public_names"]

PACKAGES = {
    "cka_probe": "Compare networks, features and signatures; draw and save the result.",
    "cka_probe.atlas": "Signatures of many networks in one folder.",
    "cka_probe.estimators": "Arrays in, numbers out: numpy, torch and CuPy alike.",
    "cka_probe.plotting": "Pictures of similarities, of training and of the theory.",
    "cka_probe.distill": "Train a student with a teacher.",
    "cka_probe.distill.losses": "Losses of CKA.",
    "cka_probe.distill.baselines": "Losses of other methods.",
    "cka_probe.distill.training": "What `distill` returns, and its options.",
    "cka_probe.distill.taps": "Where a network's layers are read.",
    "cka_probe.distill.models": "Networks by name, and their weights.",
    "cka_probe.distill.data": "Data sets as pairs (train, test).",
    "cka_probe.distill.dense": "Detectors and segmenters.",
    "cka_probe.distill.recipes": "Experiments as TOML files, and tables of methods.",
}

PAGE = """---
title: {package}.{name}
---

`from {package} import {name}`

::: {source}
    options:
      heading_level: 1
      show_root_full_path: false
      inherited_members: true
"""


def public_names(package: str) -> list[str]:
    """The public names of a package that have a page: functions, classes and constants, not subpackages."""
    module = importlib.import_module(package)
    return [name for name in sorted(module.__all__, key=str.lower) if not inspect.ismodule(getattr(module, name))]


def defined_at(package: str, name: str) -> str:
    """Dotted path at which a public name is defined."""
    value = getattr(importlib.import_module(package), name)
    module = getattr(value, "__module__", None)
    if (inspect.isclass(value) or inspect.isroutine(value)) and module:
        return f"{module}.{value.__qualname__}"
    return f"{package}.{name}"


def pages() -> Iterator[tuple[str, str]]:
    """Path and Markdown of each page."""
    index = ["# Reference", "Every public name, under the path by which it is imported."]
    for package, job in PACKAGES.items():
        names = public_names(package)
        index += [f"## `{package}`", job]
        rows = []
        for name in names:
            path = f"{package}.{name}"
            yield f"reference/{path}.md", PAGE.format(package=package, name=name, source=defined_at(package, name))
            rows.append(f"| [`{name}`]({path}.md) | {_summary(package, name)} |")
        index.append("\n".join(["| name | what it is |", "|---|---|", *rows]))
    yield "reference/index.md", "\n\n".join(index) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site."""
    from mkdocs.structure.files import File  # the tests read the pages without MkDocs

    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


def _summary(package: str, name: str) -> str:
    value = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"A constant, {type(value).__name__}."
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")
