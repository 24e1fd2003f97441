"""The error for a library that only some jobs need and that is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["require"]

# Libraries whose name differs from that of their module.
NAMES = {"cupy": "CuPy", "ot": "POT", "sklearn": "scikit-learn", "tensorboard": "TensorBoard", "tomli_w": "tomli-w"}


def require(module: str, extra: str | None, what: str) -> None:
    """Raise an error with the install line if a library is not installed. The library itself is not imported.

    Parameters
    ----------
    module : str
        The top-level module of the library.
    extra : str or None
        The extra of cka-probe that installs it; None if no extra does.
    what : str
        What needs the library: the start of the message.

    Raises
    ------
    ModuleNotFoundError
        If there is no such module.

    Examples
    --------
    >>> require("no_such_library", "distill", "distill()")
    Traceback (most recent call last):
    ModuleNotFoundError: distill() needs no_such_library, which is not installed: pip install 'cka-probe[distill]'
    """
    if sys.modules.get(module) is None and find_spec(module) is None:
        name = NAMES.get(module, module)
        line = f"pip install {name}" if extra is None else f"pip install 'cka-probe[{extra}]'"
        raise ModuleNotFoundError(f"{what} needs {name}, which is not installed: {line}", name=module)
