"""Networks of transformers from local folders, with what their files lack. Nothing is downloaded, no code is run."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ...capture.extras import require

__all__ = ["from_folder"]

# Files that transformers reads; an index names the parts of weights that are cut into several files.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Endings of weights, and files with such endings that training leaves beside them.
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
BESIDE = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")


def from_folder(folder: str) -> tuple[nn.Module, bool, list[str]]:
    """The network in a folder of ``save_pretrained``: the base model, without a head.

    Parameters
    ----------
    folder : str
        The folder. Its weights are in model.safetensors or pytorch_model.bin, whole or cut into several files; the
        latter is read with ``weights_only=True``.

    Returns
    -------
    model : torch.nn.Module
        The network.
    untrained : bool
        Whether the folder has a configuration only, so that all weights are random.
    notes : list of str
        Weights that are random because no file has them, and weights that the network has no place for.

    Raises
    ------
    FileNotFoundError
        If there is no config.json, or a file that an index names is missing.
    ValueError
        If the weights are of another format, damaged, hold Python objects, or do not fit the network.
    ModuleNotFoundError
        If transformers is not installed.
    """
    name = f"hf:{folder}"
    require("transformers", "hf", repr(name))
    path = Path(folder)
    _check_configuration(path, name)
    if not any((path / file).is_file() for file in WEIGHTS):
        _refuse_other_weights(path, name)
        return _load(path, name, with_weights=False)[0], True, []
    model, found = _load(path, name, with_weights=True)
    total = len(model.state_dict())
    if mismatched := [key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]]:
        raise ValueError(
            f"{name}: {_some(mismatched)} have another shape in the files than in {type(model).__name__}. "
            "config.json and the weights do not belong together."
        )
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if len(missing) >= total:
        raise ValueError(
            f"{name}: none of the {total} weights of {type(model).__name__} is in its files; they hold "
            f"{_some(unexpected)}. All would be random."
        )
    notes = []
    if missing:
        notes.append(f"{name}: {len(missing)} of {total} weights are not in its files and are random: {_some(missing)}")
    if unexpected:
        notes.append(
            f"{name}: {type(model).__name__} has no place for {len(unexpected)} of the weights in its files, which "
            f"{'is' if len(unexpected) == 1 else 'are'} not used: {_some(unexpected)}"
        )
    return model, False, notes


def _check_configuration(path: Path, name: str) -> None:
    if (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"{name} holds an adapter of PEFT, not a network. Load it onto its base model in a function, and give that "
            "as file.py:function."
        )
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{name} holds a pipeline of diffusers, not a network. Load one of its networks in a function, and give "
            "that as file.py:function."
        )
    raise FileNotFoundError(
        f"{name!r}: there is no {path / 'config.json'}. Give the folder of a checkpoint saved with save_pretrained; "
        "nothing is downloaded."
    )


def _refuse_other_weights(path: Path, name: str) -> None:
    """Raise ValueError if the folder holds weights that transformers would not load, and fill in random ones."""
    others = sorted(
        file.name
        for file in path.iterdir()
        if file.suffix in ENDINGS and file.name not in BESIDE and not file.name.startswith("rng_state")
    )
    if others:
        raise ValueError(
            f"{name} holds {_some(others)}, but transformers reads only {' or '.join(WEIGHTS[::2])} and their indexes. "
            "The network would have random weights. Save it with save_pretrained, or load it in a function and give "
            "that as file.py:function."
        )


def _load(path: Path, name: str, *, with_weights: bool) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModel

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _silent():
            if not with_weights:
                return AutoModel.from_config(AutoConfig.from_pretrained(path, **local), trust_remote_code=False), {}
            # Other shapes are reported, so that the message can name them.
            return AutoModel.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **local)
    except FileNotFoundError as error:
        missing = Path(str(error.filename or error)).name
        raise FileNotFoundError(f"{name}: its index names {missing}, but that file is missing.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name}: pytorch_model.bin is damaged, or holds Python objects beside its weights; they could run code "
            "and are not loaded. Save the network with save_pretrained."
        ) from error
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} needs code that is not part of transformers, and such code is not run. Load the network in a "
                "function, and give that as file.py:function."
            ) from error
        # Damaged files and unknown configurations raise a dozen exceptions of safetensors, json and transformers.
        text = str(error).strip().splitlines()
        raise ValueError(
            f"{name} cannot be loaded: {type(error).__name__}: {text[0] if text else 'no further information'}"
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without the progress bar and the coloured report of transformers: what it reports becomes notes."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _some(names: Collection[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(list(names)[:shown]) + more
