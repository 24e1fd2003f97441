"""Load a trained student from the folder of its run: its description and its safetensors file; nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from ...identity import tensors_digest
from .weights import load_weights

__all__ = ["DESCRIPTION", "describe_student", "is_code", "load_student"]

DESCRIPTION = "student.json"
"""File of a run that says which network the weights belong to."""


def load_student(
    folder: str | Path, model: nn.Module | None = None, *, weights: Literal["best", "last"] = "best"
) -> nn.Module:
    """The trained student of a run, in eval mode on the CPU.

    Only ``student.json`` and a safetensors file are read; nothing is unpickled, and no code of the folder runs.

    Parameters
    ----------
    folder : str or Path
        The folder of the run: ``output_dir`` of `distill`, or what ``cka-probe distill`` prints.
    model : torch.nn.Module, optional
        The network that the weights belong to; it is changed in place. Needed for a network of your own code. Of a
        recipe with a named network (resnet8, torchvision:NAME, timm:NAME, hf:FOLDER), it is built.
    weights : {"best", "last"}
        Those with the best test score, or those of the last epoch.

    Returns
    -------
    torch.nn.Module
        The student.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or holds no weights.
    ValueError
        If the network is made by your own code and `model` is missing, a file is damaged, or the weights do not fit.
    TypeError
        If `model` is no torch.nn.Module.

    Examples
    --------
    >>> student = load_student("runs/digits/rcka/seed_0")  # doctest: +SKIP
    """
    folder = Path(folder)
    if weights not in ("best", "last"):
        raise ValueError(f'`weights` must be "best" or "last", got {weights!r}.')
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    file = folder / f"{weights}.safetensors"
    if not file.is_file():
        runs = sorted({path.parent for path in folder.rglob(file.name)})
        hint = f" Runs below it: {', '.join(map(str, runs[:4]))}." if runs else " The first epoch of a run writes it."
        raise FileNotFoundError(f"{folder} has no {file.name}.{hint}")
    if model is None:
        model = _build(folder)
    _check_digest(file)
    return load_weights(model, file).eval()


def describe_student(
    source: str,
    num_classes: int,
    classes: list[str],
    normalisation: tuple[list[float], list[float]] | None = None,
) -> str:
    """The content of ``student.json``.

    Parameters
    ----------
    source : str
        The network, as `load_model` takes it.
    num_classes : int
        Length of the logits.
    classes : list of str
        Names of the classes; empty if they are not known.
    normalisation : (mean, deviation), optional
        Of the channels of the images, in [0, 1], that were taken out of them.
    """
    told: dict[str, Any] = {"model": source, "num_classes": num_classes, "classes": classes}
    if normalisation is not None:
        told |= {"image_mean": normalisation[0], "image_std": normalisation[1]}
    return json.dumps(told, indent=1)


def is_code(source: str) -> bool:
    """Whether a text names a function of Python code, and not a network of a library or a folder of transformers.

    >>> is_code("net.py:make"), is_code("timm:vit_tiny_patch16_224"), is_code("resnet8")
    (True, False, False)
    """
    library, colon, _ = source.partition(":")
    return ".py:" in source or (bool(colon) and library not in ("torchvision", "timm", "hf"))


def _build(folder: Path) -> nn.Module:
    """The network that a run describes."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise ValueError(
            f"{folder} does not say which network its weights belong to ({DESCRIPTION} is written by recipes). Pass "
            f"the network: load_student({str(folder)!r}, model=network)."
        )
    try:
        told: Any = json.loads(file.read_text(encoding="utf-8"))
        source, classes = told["model"], told["num_classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}). Pass the network: load_student({str(folder)!r}, model=network)."
        ) from error
    if not isinstance(source, str) or not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"{file} is damaged: it names the network {source!r} with {classes!r} classes.")
    if is_code(source):
        raise ValueError(
            f"The student of {folder} is made by the code {source}, which is not run from here. Pass the network: "
            f"load_student({str(folder)!r}, model=load_model({source!r})), with load_model of "
            "cka_probe.distill.models.sources."
        )
    library, colon, name = source.partition(":")
    if colon and library == "hf":
        from .hugging_face import from_folder

        return from_folder(name)[0]
    from . import build

    return build(source, num_classes=classes)


def _check_digest(file: Path) -> None:
    """Raise ValueError if the weights are not those whose digest the run has written into the file."""
    try:
        with safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get("digest")
        found = expected and tensors_digest(load_file(file))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if found != expected:
        raise ValueError(f"{file} is damaged or was changed: its weights are not those that the run has written.")
