"""Error of a tool against minibatch CKA in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from cases import Case, Table, call
from torch import nn


def truth(case: Case) -> Table:
    """Minibatch CKA in float64, by the formula of Song et al. (2012), for every call of every layer.

    Tokens of a batch with an attention mask are averaged over the real ones, as ``compare`` does.
    """

    def grams(net: nn.Module, layers: Iterable[str], batch: Any) -> dict[str, torch.Tensor]:
        mask = batch["attention_mask"].bool() if isinstance(batch, dict) else None
        found: dict[str, torch.Tensor] = {}
        calls: dict[str, int] = {}

        def watch(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                calls[name] = calls.get(name, 0) + 1
                x = (output[0] if isinstance(output, tuple) else output).detach().double()
                if mask is not None and x.ndim == 3:
                    first = x[:, :1]
                    x = first[:, 0] + ((x - first) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
                x = x.flatten(1)
                x = x - x[0]
                x = x - x.mean(0)
                found[name if calls[name] == 1 else f"{name}#{calls[name]}"] = (x @ x.T).fill_diagonal_(0)

            return hook

        modules = dict(net.named_modules())
        handles = [modules[name].register_forward_hook(watch(name)) for name in layers]
        with torch.no_grad():
            call(net, batch)
        for handle in handles:
            handle.remove()
        return found

    def hsic(k: torch.Tensor, other: torch.Tensor, n: int) -> torch.Tensor:
        traces = k.flatten(1) @ other.flatten(1).T
        sums = torch.outer(k.sum((1, 2)), other.sum((1, 2))) / ((n - 1) * (n - 2))
        return (traces + sums - 2 / (n - 2) * k.sum(2) @ other.sum(2).T) / (n * (n - 3))

    cross: Any = 0.0
    self_x: Any = 0.0
    self_y: Any = 0.0
    rows: list[str] = []
    columns: list[str] = []
    for batch in case.loader():
        left = grams(case.model_x, case.layers_x, batch)
        right = grams(case.model_y, case.layers_y, batch)
        rows, columns, n = list(left), list(right), len(next(iter(left.values())))
        k, other = torch.stack([*left.values()]), torch.stack([*right.values()])
        cross = cross + n * hsic(k, other, n)
        self_x = self_x + n * hsic(k, k, n).diagonal()
        self_y = self_y + n * hsic(other, other, n).diagonal()
    return Table(rows, columns, (cross / self_x.sqrt()[:, None] / self_y.sqrt()[None, :]).numpy())


def errors(found: Table, true: Table) -> tuple[float, int, int]:
    """The largest error, the number of cells with an error above 0.001, and the number of cells."""

    def places(names: list[str], there: list[str]) -> tuple[list[int], list[int]]:
        # A tool that keeps one call of a layer keeps the last one. Layers that a tool adds by itself are ignored.
        last = {name.partition("#")[0]: place for place, name in enumerate(there)}
        exact = {name: place for place, name in enumerate(there)}
        known = exact if any("#" in name for name in names) else last
        pairs = [(own, known[name]) for own, name in enumerate(names) if name in known]
        return [own for own, _ in pairs], [place for _, place in pairs]

    own_rows, rows = places(found.rows, true.rows)
    own_columns, columns = places(found.columns, true.columns)
    values, expected = found.values[np.ix_(own_rows, own_columns)], true.values[np.ix_(rows, columns)]
    both = np.isnan(values) & np.isnan(expected)
    off = np.where(both, 0.0, np.nan_to_num(np.abs(values - expected), nan=np.inf))
    return float(off.max()), int((off > 1e-3).sum()), off.size
