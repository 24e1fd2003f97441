"""Networks from the text that names them, for the command line and recipes. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

__all__ = ["LoadedNetwork", "load_model", "load_network"]

# Endings of files of weights, which are no networks.
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


class LoadedNetwork(NamedTuple):
    """A network and what is known about its weights."""

    model: nn.Module
    untrained: bool
    """Whether no weights were given, so that all are random. False if that cannot be known (module:function)."""
    notes: tuple[str, ...]
    """Weights that are random because the files lack them, and weights that were not used."""


def load_model(source: str, weights: str | Path | None = None, *, num_classes: int | None = None) -> nn.Module:
    """Build or load the network that a text names.

    Parameters
    ----------
    source : str
        A name of `cka_probe.distill.models` ("resnet20"), "torchvision:resnet18", "timm:vit_tiny_patch16_224",
        "hf:FOLDER" (a local checkpoint of transformers, in safetensors or pytorch_model.bin; random weights if the
        folder has only a config.json), "module:function" or "file.py:function" (a function without arguments that
        returns a torch.nn.Module, or a torch.nn.Module), or the folder of a run, as :func:`load_student` takes it.
    weights : path, optional
        A .safetensors file, or a .pt file with a state dict (read with weights_only=True).
    num_classes : int, optional
        Length of the logits. By default 1000 for torchvision and timm, else 100. Not used for other sources.

    Returns
    -------
    torch.nn.Module
        The network on the CPU, with random weights if none are given; see `load_network`.

    Raises
    ------
    ValueError
        If there is no such network (the message names the nearest ones), its code fails (the message names file, line
        and function), or the weights do not fit.
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
    return load_network(source, weights, num_classes=num_classes).model


def load_network(source: str, weights: str | Path | None = None, *, num_classes: int | None = None) -> LoadedNetwork:
    """The network that a text names, and whether its weights are random.

    Parameters
    ----------
    source, weights, num_classes
        As `load_model`.

    Returns
    -------
    LoadedNetwork
        The network, whether no weights were given, and notes about weights that the files lack.

    Raises
    ------
    ValueError, FileNotFoundError, TypeError, ModuleNotFoundError
        As `load_model`.

    Examples
    --------
    >>> load_network("resnet8").untrained
    True
    """
    from . import NAMES, build, load_weights
    from .factories import from_function
    from .hugging_face import from_folder

    # On Windows a path may hold a colon itself.
    file, _, function = source.rpartition(":")
    library, colon, name = source.partition(":")
    untrained = True
    notes: list[str] = []
    if file.endswith(".py"):
        model, untrained = from_function(file, function), False
    elif colon and library == "hf":
        model, untrained, notes = from_folder(name)
    elif colon and library not in ("torchvision", "timm"):
        model, untrained = from_function(library, name), False
    elif source not in NAMES and _is_run(source):
        model, untrained = _of_run(source), False
    else:
        _refuse_files(source)
        model = build(source, num_classes=(1000 if colon else 100) if num_classes is None else num_classes)
    if weights is not None:
        load_weights(model, weights)
        untrained = False
        # Every weight has now come from that file.
        notes = []
    return LoadedNetwork(model, untrained, tuple(notes))


def _is_run(source: str) -> bool:
    """Whether the text is the folder of a run of `distill`, or a folder of such runs."""
    levels = ("", "*/", "*/*/")
    return Path(source).is_dir() and any(next(Path(source).glob(f"{level}best.safetensors"), None) for level in levels)


def _of_run(folder: str) -> nn.Module:
    """The student of a run whose description names a network."""
    from .saved_student import DESCRIPTION, load_student

    weights = Path(folder) / "best.safetensors"
    if weights.is_file() and not (Path(folder) / DESCRIPTION).is_file():
        raise ValueError(
            f"{folder} does not say which network its weights belong to ({DESCRIPTION} is written by recipes). Name "
            f"the network, and give {weights} as its weights: --weights-x and --weights-y of `cka-probe compare`, "
            "`weights` in a recipe."
        )
    return load_student(folder)


def _refuse_files(source: str) -> None:
    """Raise ValueError if the text is a file or folder; the message says how to name the network in it."""
    from .factories import functions_of_file

    path = Path(source)
    if path.suffix == ".py":
        found = ", ".join(f"{source}:{name}" for name in functions_of_file(path)[:6])
        raise ValueError(
            f"{source}: say which function makes the network: {source}:FUNCTION.{f' It has {found}.' if found else ''}"
        )
    if path.suffix in WEIGHT_FILES:
        raise ValueError(
            f"{source} is a file of weights. Name the network that they belong to, and give the file as its weights: "
            "--weights-x and --weights-y of `cka-probe compare`, `weights` in a recipe."
        )
    if (path / "config.json").is_file():
        raise ValueError(f"{source} is a folder of transformers: write hf:{source}.")
