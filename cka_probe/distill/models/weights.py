"""Load weights from a file of safetensors or torch.save into a network."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...safe_read import check_uncompressed

__all__ = ["load_weights"]

# Keys under which training scripts store the state dict.
STATE_KEYS = ("model", "state_dict", "model_state_dict", "net")
# Parts that torch.compile, FSDP and activation checkpointing add to names, at any depth.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Entries that wrappers add beside the weights: the counter of AveragedModel.
COUNTERS = ("n_averaged",)

Model = TypeVar("Model", bound=nn.Module)


def load_weights(model: Model, path: str | Path, *, ignore_head: bool = False) -> Model:
    """Load the weights of a file into a network. The network changes only if every weight fits.

    The file is a .safetensors file or a file of `torch.save`. The latter is read with ``weights_only=True``, so no code
    in it runs; its state dict may be at the top, or under "model", "state_dict", "model_state_dict", "net" or another
    key if only that holds one. A prefix that all names share ("module.", "model.") and the names of wrappers
    ("_orig_mod") are removed if the network does not have them. Of a file that holds several networks under prefixes (a
    whole distiller: "student.", "teacher.", "loss."), the one that fits completely is loaded. The counters of batch
    norms may be missing, as in old files.

    Parameters
    ----------
    model : torch.nn.Module
        The network; it is changed in place and keeps its dtype and device.
    path : str or Path
        The file.
    ignore_head : bool
        Keep the network's own weights in one layer that has another shape in the file: a classifier of another number
        of classes.

    Returns
    -------
    torch.nn.Module
        The same `model`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file cannot be read, holds no state dict, or does not fit the network. The message lists missing names,
        unexpected names and differing shapes.

    Examples
    --------
    >>> import tempfile
    >>> from cka_probe.distill.models import build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "teacher.pth"
    ...     torch.save({"epoch": 240, "model": build("resnet8").state_dict()}, path)
    ...     teacher = load_weights(build("resnet8"), path)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weight file {str(path)!r}. Weights are never downloaded; give a local file."
        )
    state = _named_as_in(model, _state_dict(_read(path), path), path)
    head = _other_head(model, state)
    if ignore_head and head:
        state = {name: tensor for name, tensor in state.items() if name not in head}
        state |= {name: tensor for name, tensor in model.state_dict().items() if name in head}
    _check_fit(model, state, path, head)
    model.load_state_dict(state, strict=False)  # only counters of batch norms may be missing
    return model


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_uncompressed(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{str(path)!r} is a TorchScript archive, not a file of weights. Save its weights alone: "
                "torch.save(torch.jit.load(path).state_dict(), weights)."
            ) from error
        raise ValueError(_damaged(path, error)) from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise ValueError(
                f"{str(path)!r} holds Python objects beside its weights. They could run code and are not loaded. "
                f"Save only the state dict in the program that made the file: torch.save(model.state_dict(), path)."
            ) from error
        raise ValueError(_damaged(path, error)) from error
    except (SafetensorError, EOFError, zipfile.BadZipFile, ValueError, KeyError, IndexError) as error:
        raise ValueError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"{str(path)!r} is not a readable weight file: damaged, cut short, or neither safetensors nor torch.save "
        f"({type(error).__name__}: {reason[0] if reason else 'no further information'})."
    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        content = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping)), content)
        if _is_state_dict(content):
            return dict(content)
        inside = [key for key, value in content.items() if _is_state_dict(value)]
        if len(inside) == 1:
            return dict(content[inside[0]])
        if inside:
            raise ValueError(
                f"{str(path)!r} holds several state dicts, {', '.join(map(repr, inside[:8]))}. Save the one to load "
                "in a file of its own."
            )
        found = f"the keys {', '.join(map(repr, list(content)[:8]))}" if content else "nothing in it"
    raise ValueError(
        f"{str(path)!r} holds no state dict: names with tensors were expected at the top or under "
        f"{', '.join(map(repr, STATE_KEYS))}; it has {found}."
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _named_as_in(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict without what wrappers added to its names, as far as that makes it fit the network better."""
    expected = set(model.state_dict())

    def without_wrappers(name: str) -> str:
        return name if name in expected else ".".join(part for part in name.split(".") if part not in WRAPPERS)

    choices = [{without_wrappers(name): tensor for name, tensor in state.items()}]
    # Wrappers may be nested, for example AveragedModel in DistributedDataParallel: one prefix fewer each time.
    while True:
        named = {name: tensor for name, tensor in choices[-1].items() if name not in COUNTERS}
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            first, _, rest = name.partition(".")
            parts.setdefault(first, {})[rest] = tensor
        if len(parts) != 1 or "" in next(iter(parts.values())):
            break
        choices += parts.values()
    best = max(choices, key=lambda choice: len(expected & set(choice)))
    if expected <= set(best):
        return best
    # Several networks under prefixes: the one that fits, with all its shapes.
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    fitting = {
        prefix: part
        for prefix, part in parts.items()
        if part.keys() == shapes.keys() and all(part[name].shape == shape for name, shape in shapes.items())
    }
    if len(fitting) > 1:
        raise ValueError(
            f"{str(path)!r} holds several networks that fit this {type(model).__name__}: "
            f"{', '.join(repr(prefix + '.') for prefix in fitting)}. Save the one to load in a file of its own."
        )
    return next(iter(fitting.values()), best)


def _other_head(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of the entries of the one layer whose shapes differ; empty if none or several do."""
    expected = model.state_dict()
    differing = [name for name, tensor in expected.items() if name in state and state[name].shape != tensor.shape]
    layers = {name.rpartition(".")[0] for name in differing}
    if len(layers) != 1:
        return set()
    layer = layers.pop()
    return {name for name in expected if name.rpartition(".")[0] == layer}


def _check_fit(model: nn.Module, state: dict[str, Tensor], path: Path, head: set[str]) -> None:
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    differing = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the network"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    other = [
        f"{name} ({'complex' if state[name].is_complex() else str(state[name].layout)})"
        for name, tensor in expected.items()
        if name in state and (state[name].layout is not tensor.layout or state[name].is_complex() > tensor.is_complex())
    ]
    empty = [name for name in expected if name in state and state[name].is_meta and not expected[name].is_meta]
    problems = []
    if other:
        problems.append(f"of another kind than in the network: {_some(other)}")
    if empty:
        problems.append(f"without numbers (on the meta device): {_some(empty)}")
    if missing:
        problems.append(f"missing from the file: {_some(missing)}")
    if unexpected:
        problems.append(f"not in the network: {_some(unexpected)}")
    if differing:
        problems.append(f"another shape: {_some(differing)}")
    if problems:
        remedy = "Check the network's name and its number of classes; nothing was loaded."
        if head and not missing and not unexpected:
            layer = next(iter(head)).rpartition(".")[0]
            remedy = (
                f"To keep this network's own {layer!r}, call load_weights with ignore_head=True; nothing was loaded."
            )
        raise ValueError(f"{str(path)!r} does not fit this {type(model).__name__}; {'; '.join(problems)}. {remedy}")


def _some(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _harmless() -> list[Any]:
    # Training scripts store the best accuracy as a numpy number beside the weights, and their arguments as a Namespace
    # with paths. These globals can only build a number, a path, or an object with attributes. numpy 1 and 2 store the
    # function under different module names.
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")}
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *kinds,
        argparse.Namespace,
        type(Path()),
    ]


_HARMLESS = _harmless()
