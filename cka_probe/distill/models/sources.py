"""Networks from the text that names them, for the command line and recipes. Nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from torch import nn

from ...capture.extras import require

__all__ = ["load_model"]


def load_model(source: str, weights: str | Path | None = None, *, num_classes: int | None = None) -> nn.Module:
    """Build or load the network that a text names.

    Parameters
    ----------
    source : str
        A name of `cka_probe.distill.models` ("resnet20"), "torchvision:resnet18", "timm:vit_tiny_patch16_224",
        "hf:FOLDER" (a local checkpoint of transformers; random weights if the folder has only a config.json),
        "module:function" or "file.py:function" (a function without arguments that returns a torch.nn.Module).
    weights : path, optional
        A .safetensors file, or a .pt file with a state dict (read with weights_only=True).
    num_classes : int, optional
        Length of the logits. By default 1000 for torchvision and timm, else 100. Not used for other sources.

    Returns
    -------
    torch.nn.Module
        The network on the CPU, with random weights if none are given.

    Raises
    ------
    ValueError
        If there is no such network (the message names the nearest ones), or the weights do not fit.
    FileNotFoundError
        If a folder or file does not exist.
    TypeError
        If the function does not return a torch.nn.Module.
    ModuleNotFoundError
        If the library that the source needs is not installed.

    Examples
    --------
    >>> type(load_model("torchvision:resnet18")).__name__
    'ResNet'
    """
    from . import build, load_weights

    library, colon, name = source.partition(":")
    if colon and library == "hf":
        model = _hugging_face(name)
    elif colon and library not in ("torchvision", "timm"):
        model = _from_function(library, name)
    else:
        model = build(source, num_classes=(1000 if colon else 100) if num_classes is None else num_classes)
    if weights is not None:
        load_weights(model, weights)
    return model


def _hugging_face(folder: str) -> nn.Module:
    require("transformers", "hf", f"'hf:{folder}'")
    from transformers import AutoConfig, AutoModel

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"'hf:{folder}': there is no {path / 'config.json'}. Give the folder of a checkpoint saved with "
            "save_pretrained; nothing is downloaded."
        )
    if any(path.glob("*.safetensors")):
        return AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
    return AutoModel.from_config(AutoConfig.from_pretrained(path, local_files_only=True))


def _from_function(module_name: str, function: str) -> nn.Module:
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            # Find modules in the working directory, as `python -m` does.
            sys.path.insert(0, str(Path.cwd()))
            try:
                module = importlib.import_module(module_name)
            finally:
                sys.path.pop(0)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            raise ValueError(
                f"There is no Python module {module_name!r}. A network is a name such as resnet20, torchvision:NAME, "
                "timm:NAME, hf:FOLDER, module:function or file.py:function."
            ) from error
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{module_name} has no function {function!r} that makes a network.")
    model = getattr(module, function)()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{module_name}:{function} returned {type(model).__name__}, not a torch.nn.Module.")
    return model
