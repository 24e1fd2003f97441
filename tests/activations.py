"""Reference for comparisons: activations cloned inside their hooks, and CKA in float64 by Song et al. (2012).

Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

Batch = dict[str, np.ndarray]
"""Features (n, d) of each layer in float64, in the order of execution."""


def cloned(
    model: nn.Module,
    batch: torch.Tensor,
    chosen: Callable[[str, nn.Module], bool] | None = None,
    run: Callable[[nn.Module, torch.Tensor], object] | None = None,
    features: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.reshape(x.shape[0], -1),
) -> Batch:
    """Features of every activation of the chosen modules (by default the leaves), cloned inside the hook.

    ``features`` turns a clone in float64 into a matrix (n, d).
    """
    chosen = chosen or (lambda _name, module: not list(module.children()))
    found: Batch = {}
    calls: dict[str, int] = {}

    def watch(name: str):
        def hook(_module, _inputs, output):
            while not isinstance(output, torch.Tensor):
                output = output[0]
            calls[name] = calls.get(name, 0) + 1
            key = name if calls[name] == 1 else f"{name}#{calls[name]}"
            output = output.detach().clone()
            found[key] = features(output.double() if output.is_floating_point() else output).numpy()

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if chosen(name, m)]
    training = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            model(batch) if run is None else run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training:
            module.training = mode
    return found


def _products(x: Sequence[np.ndarray], y: Sequence[np.ndarray], estimator: str) -> np.ndarray:
    """HSIC of every pair: equation 5 of Song et al. (2012), or tr(KHLH) / (n-1)^2 of Gretton et al. (2005)."""
    n = len(x[0])

    def grams(features):
        found = []
        for f in features:
            f = f - f[0]
            f = f - f.mean(axis=0)
            K = f @ f.T
            found.append(K - np.diag(np.diag(K)) if estimator == "unbiased" else K)
        return np.stack(found)

    K, L = grams(x), grams(y)
    traces = K.reshape(len(K), -1) @ L.reshape(len(L), -1).T
    if estimator == "biased":
        return traces / (n - 1) ** 2
    sums = np.outer(K.sum((1, 2)), L.sum((1, 2)))
    rows = K.sum(2) @ L.sum(2).T
    return (traces + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))


def reference_cka(
    batches_x: Sequence[Batch], batches_y: Sequence[Batch] | None = None, estimator: str = "unbiased"
) -> np.ndarray:
    """Minibatch CKA of every pair of layers: ratio of the mean HSIC, with batches weighted by their samples."""
    batches_y = batches_x if batches_y is None else batches_y
    cross, self_x, self_y = 0.0, 0.0, 0.0
    for x, y in zip(batches_x, batches_y, strict=True):
        xs, ys = list(x.values()), list(y.values())
        n = len(xs[0])
        cross = cross + n * _products(xs, ys, estimator)
        self_x = self_x + n * np.array([_products([f], [f], estimator)[0, 0] for f in xs])
        self_y = self_y + n * np.array([_products([f], [f], estimator)[0, 0] for f in ys])
    with np.errstate(divide="ignore", invalid="ignore"):
        return cross / np.sqrt(self_x)[:, None] / np.sqrt(self_y)[None, :]
