"""Versions, machine and git commit of a run: the facts that are needed to repeat it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ... import __version__

__all__ = ["environment", "versions"]


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide a result."""
    found = {"python": platform.python_version(), "cka-probe": __version__}
    for name in ("torch", "torchvision", "numpy", "accelerate", "torchmetrics"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, seed and git commit."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "gpus": gpus},
        "seed": seed,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """The commit of the working directory, and whether files differ from it; None outside a repository."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
