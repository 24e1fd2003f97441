from .experiment import run_recipe
from .methods import METHODS, build_loss
from .recipe import Recipe
from .tables import run_grid, summarise

__all__ = ["METHODS", "Recipe", "build_loss", "run_grid", "run_recipe", "summarise"]
