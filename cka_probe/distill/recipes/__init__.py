"""Recipes: runs described in TOML files, and tables over methods and seeds.

Names are imported when they are first used, so a recipe is read without torch.
"""

import lazy_loader

from ...capture.extras import require

for library in ("pydantic", "tomli_w"):
    require(library, "distill", "A recipe")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
