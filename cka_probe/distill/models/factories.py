"""Networks from Python code: module:function or file.py:function, where the function may also be a network itself."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from torch import nn

from ...capture.nearest import nearest_hint

__all__ = ["OwnFunction", "from_function", "function_of_file", "functions_of_file"]

Result = TypeVar("Result")


def from_function(place: str, name: str) -> nn.Module:
    """The network that a function makes, or that stands under that name.

    Parameters
    ----------
    place : str
        A module ("package.module") or a file ("folder/file.py").
    name : str
        A function or class that can be called without arguments, or a torch.nn.Module.

    Returns
    -------
    torch.nn.Module
        The network.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is no such module or name, or its code raises an error; the message names file, line and function.
    TypeError
        If what the name stands for, or what the function returns, is no torch.nn.Module.
    ModuleNotFoundError
        If the code imports something that is not installed.
    """
    module = _from_file(Path(place)) if place.endswith(".py") else _from_import(place)
    if name not in vars(module) and not hasattr(module, name):
        found = _makers(module)
        hint = nearest_hint(name, found, kind="Its functions") if found else "It defines no function."
        raise ValueError(f"{place} has no function {name!r} that makes a network. {hint}")
    made = getattr(module, name)
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise TypeError(
            f"{place}:{name} is a {type(made).__name__}, not a function that makes a network, or a network."
        )
    _check_arguments(place, name, made)
    model = _run(f"{place}:{name}", str(getattr(module, "__file__", place)), made)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{place}:{name} returned {_described(model)}, not a torch.nn.Module.{_remedy(model)}")
    return model


class OwnFunction(NamedTuple):
    """A function of the user's own file."""

    place: str
    """FILE.py:FUNCTION."""
    file: str
    code: Callable[..., Any]

    def run(self, **options: Any) -> Any:
        """What the function returns; its errors become ValueErrors that name file, line and function."""
        return _run(self.place, self.file, lambda: self.code(**options))


def function_of_file(file: str, name: str) -> OwnFunction:
    """A function of a Python file, which is run for it.

    Parameters
    ----------
    file : str
        The file.
    name : str
        A function or class at its top.

    Returns
    -------
    OwnFunction
        The function, not yet called.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file has no such function (the message names the nearest ones), or its code raises an error.
    ModuleNotFoundError
        If the code imports something that is not installed.
    """
    module = _from_file(Path(file))
    code = getattr(module, name, None)
    if not callable(code):
        found = functions_of_file(Path(file))
        hint = nearest_hint(name, found, kind="Its functions") if found else "It defines no function."
        raise ValueError(f"{file} has no function {name!r}. {hint}")
    return OwnFunction(f"{file}:{name}", str(getattr(module, "__file__", file)), code)


def functions_of_file(path: Path) -> list[str]:
    """Names at the top of a file that may make a network; the file is not run. Empty if it cannot be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look their module up here.
    sys.modules.setdefault(path.stem, module)
    loader = spec.loader
    try:
        with _first_on_path(path.resolve().parent):  # a file may import its neighbours, as when Python runs it
            _run(str(path), str(path), lambda: loader.exec_module(module))
    except BaseException:
        if sys.modules.get(path.stem) is module:  # half of a module must not be imported later
            del sys.modules[path.stem]
        raise
    return module


def _from_import(name: str) -> ModuleType:
    try:
        # Find modules in the working directory, as `python -m` does.
        with _first_on_path(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(
                f"There is no Python module {name!r}. A network is a name such as resnet20, torchvision:NAME, "
                "timm:NAME, hf:FOLDER, module:function or file.py:function."
            ) from error
        raise _told(name, "", error) from error
    except (Exception, SystemExit) as error:
        raise _told(name, "", error) from error


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _run(what: str, file: str, code: Callable[[], Result]) -> Result:
    """Result of code of the user; its errors name file, line and function."""
    try:
        return code()
    except (Exception, SystemExit) as error:
        raise _told(what, file, error) from error


def _told(what: str, file: str, error: BaseException) -> Exception:
    """An error that says where in the user's code the first one was raised."""
    if isinstance(error, SyntaxError):
        text = (error.text or "").strip()
        return ValueError(f"{error.filename}, line {error.lineno}: {error.msg}: {text}")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]
    own = [frame for frame in frames if frame.filename == file] or [f for f in frames if "importlib" not in f.filename]
    kind, text = type(error).__name__, str(error)
    message = f"{kind}: {text}" if text else kind
    if isinstance(error, SystemExit):
        message = 'it ends the program. Put what is not a definition under `if __name__ == "__main__":`'
    if own:
        function = "" if own[-1].name in ("<module>", "<lambda>") else f", in {own[-1].name}"
        at = f"{own[-1].filename}, line {own[-1].lineno}{function}: "
    else:
        at = ""
    # The library that is missing is the user's to install, and has an exception of its own.
    made = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ValueError
    return made(f"{what} failed. {at}{message}")


def _makers(module: ModuleType) -> list[str]:
    """Public names of a module that hold networks, or functions and classes defined in it."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, nn.Module) or (callable(value) and getattr(value, "__module__", "") == module.__name__))
    ]


def _check_arguments(place: str, name: str, function: Any) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # code in C has no signature
        return
    try:
        signature.bind()
    except TypeError:
        needed = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        raise ValueError(
            f"{place}:{name} needs arguments ({', '.join(needed)}). Give a function without arguments that calls it: "
            f"def make(): return {name}(...)."
        ) from None


def _described(value: Any) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else type(value).__name__


def _remedy(value: Any) -> str:
    if value is None:
        return " Does it end with `return`?"
    if inspect.isclass(value) and issubclass(value, nn.Module):
        return f" Return {value.__name__}()."
    if isinstance(value, tuple | list) and any(isinstance(part, nn.Module) for part in value):
        return " Return the network alone."
    return ""
