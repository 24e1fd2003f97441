"""The progress bar of long work: tqdm's widget in notebooks that can show it, else its bar of text."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = ["tqdm"]

if TYPE_CHECKING or find_spec("ipywidgets") is None:
    from tqdm import TqdmWarning, tqdm

    if "ipykernel" in sys.modules:
        # At its first import, tqdm.auto asks a notebook for ipywidgets. Accelerate imports it, in the middle of a run.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)
            import_module("tqdm.auto")
else:
    from tqdm.auto import tqdm
