"""MkDocs hook: copy MathJax from the package nbclassic into the site, so that formulas need no other server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbclassic

__all__ = ["on_post_build"]

# The parts that the configuration in formulas.js loads: TeX in, SVG out, with the glyphs of STIX.
PARTS = (
    "MathJax.js",
    "README.md",  # its licence
    "extensions/tex2jax.js",
    "extensions/MathEvents.js",
    "extensions/TeX",
    "jax/input/TeX",
    "jax/element/mml",
    "jax/output/SVG/jax.js",
    "jax/output/SVG/config.js",
    "jax/output/SVG/autoload",
    "jax/output/SVG/fonts/STIX-Web",
)


def on_post_build(config: Any) -> None:
    """Copy `PARTS` of MathJax into the folder ``mathjax`` of the finished site."""
    source = Path(nbclassic.__file__).parent / "static/components/MathJax"
    target = Path(config["site_dir"]) / "mathjax"
    for part in PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / part, target / part)
