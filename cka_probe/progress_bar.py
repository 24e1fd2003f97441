"""The progress bar of long work: tqdm's widget in notebooks that can show it, else its bar of text."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = ["tqdm"]

# tqdm.auto warns in a notebook without ipywidgets, at import and for each user anew.
if TYPE_CHECKING or find_spec("ipywidgets") is None:
    from tqdm import tqdm
else:
    from tqdm.auto import tqdm
