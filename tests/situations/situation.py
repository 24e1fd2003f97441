"""What the situations share: a float64 reference of their own, the check of notes, optional packages.

A situation is one short file. Its docstring says where people meet it. It runs a comparison as a user would write it,
and then `check` computes every value again: plain forward hooks on a copy of the model, with a copy of each batch, copy
every output at once; CKA follows from its definition in float64 (`activations.reference_cka`). Nothing here uses
`cka_probe.capture`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from activations import Batch, reference_cka
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["activations", "check", "check_notes", "flattened", "images", "mean_over_tokens", "needs", "values_of"]


def needs(package: str, extra: str = "situations") -> ModuleType:
    """Import an optional package, or skip the situation and say which extra installs it."""
    return pytest.importorskip(package, reason=f"needs {package}: pip install cka-probe[{extra}]")


def images(n: int = 8, side: int = 32, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Random images (n, channels, side, side)."""
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def flattened(_name: str, output: torch.Tensor, _batch: Any) -> torch.Tensor:
    """Features of a layer without a mask: all numbers of a sample in one row."""
    return output.reshape(output.shape[0], -1)


def mean_over_tokens(mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens of each sample: ``tokens`` (n, t, ...), ``mask`` (n, t) with 1 for real tokens."""
    rows = tokens.reshape(*tokens.shape[:2], -1)
    return torch.stack([sample[keep].mean(0) for sample, keep in zip(rows, mask.bool(), strict=True)])


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        batch = batch[0]
    if isinstance(batch, PackedSequence):  # a tuple by its class, but one input
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _first(_name: str, output: Any) -> torch.Tensor:
    """Floating tensor that comes first in tuples, lists, mappings and dataclasses."""
    if isinstance(output, torch.Tensor):
        return output
    found = list(output.values() if isinstance(output, Mapping) else getattr(output, "__dict__", {}).values() or output)
    return next(_first(_name, part) for part in found if not isinstance(part, torch.Tensor) or part.is_floating_point())


def activations(
    model: nn.Module,
    batches: Sequence[Any],
    rows: Sequence[str],
    *,
    run: Callable[[nn.Module, Any], Any] = _call,
    pick: Callable[[str, Any], torch.Tensor] = _first,
    features: Callable[[str, torch.Tensor, Any], torch.Tensor] = flattened,
    copied: bool = True,
) -> list[Batch]:
    """Features (n, d) in float64 of the given calls of layers, for each batch.

    Parameters
    ----------
    model : torch.nn.Module
        The network, without a wrapper (DataParallel, torch.compile). It runs in eval mode, without gradients.
    batches : sequence
        The same batches that the comparison reads.
    rows : sequence of str
        "name", or "name#2" for the second call of the module in one forward; "model" is the whole network.
    run : callable
        ``run(model, batch)`` runs the network. By default the target of (input, target) is left out, and mappings are
        passed as keywords.
    pick : callable
        ``pick(row, output)`` is the tensor of an output that holds several.
    features : callable
        ``features(row, tensor, batch)`` is the matrix (n, d) of a layer's output.
    copied : bool
        Whether to run a deep copy, so that the user's model stays as it is. False for models that cannot be copied;
        they are in eval mode afterwards.
    """
    model = (copy.deepcopy(model) if copied else model).eval()
    wanted: dict[int, dict[int, str]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.setdefault("model", model)  # the name of the whole network in a result
    for row in rows:
        path, _, call = row.partition("#")
        wanted.setdefault(id(modules[path]), {})[int(call or 1)] = row
    found = []
    for given in batches:
        batch, outputs, calls = copy.deepcopy(given), {}, dict.fromkeys(wanted, 0)

        def hook(module, _inputs, output, batch=batch, outputs=outputs, calls=calls):
            calls[id(module)] += 1
            row = wanted[id(module)].get(calls[id(module)])
            if row is not None:
                tensor = pick(row, output).detach().clone()
                outputs[row] = features(row, tensor.double(), batch).numpy().copy()

        handles = [
            m.register_forward_hook(hook) for m in {id(m): m for m in modules.values()}.values() if id(m) in wanted
        ]
        with torch.no_grad():
            run(model, batch)
        for handle in handles:
            handle.remove()
        found.append({row: outputs[row] for row in rows})
    return found


def values_of(rows: list[Batch], columns: list[Batch] | None = None) -> np.ndarray:
    """Minibatch CKA in float64 of every row with every column; NaN for layers that are constant."""
    return reference_cka(rows, columns)


def check(
    result: Any,
    model_x: nn.Module,
    batches: Sequence[Any],
    model_y: nn.Module | None = None,
    *,
    batches_y: Sequence[Any] | None = None,
    atol: float = 1e-6,
    **how: Any,
) -> None:
    """Compare every value with the reference. ``how``: keywords of ``activations``, for both models."""
    x = y = activations(model_x, batches, result.rows, **how)
    if model_y is not None or batches_y is not None or result.rows != result.columns:
        y = activations(model_y or model_x, batches if batches_y is None else batches_y, result.columns, **how)
    expected = values_of(x, y)
    assert result.shape == expected.shape
    assert np.isfinite(expected).any(), "the situation compares nothing"
    assert_allclose(result.values, expected, rtol=0, atol=atol)


def check_notes(result: Any, *patterns: str) -> None:
    """Each pattern (a regular expression) fits a note, and each note a pattern. Without patterns there is no note."""
    missing = [pattern for pattern in patterns if not any(re.search(pattern, note) for note in result.notes)]
    surplus = [note for note in result.notes if not any(re.search(pattern, note) for pattern in patterns)]
    assert not missing, f"no note fits {missing}; the notes are {list(result.notes)}"
    assert not surplus, f"notes that nobody needs: {surplus}"
