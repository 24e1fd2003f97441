"""compare() and other tools, each as a function of a case."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Case, Table, call
from torch import nn


def floor(case: Case) -> None:
    """The forward passes alone. A network that is compared with itself runs once."""
    with torch.no_grad():
        for batch in case.loader():
            call(case.model_x, batch)
            if case.model_y is not case.model_x:
                call(case.model_y, batch)


def ours(case: Case, **options: Any) -> Table:
    import cka_probe as cp

    result = cp.compare(
        case.model_x,
        case.model_y,
        case.loader(),
        layers=case.layers_x,
        layers_y=case.layers_y,
        progress=False,
        **options,
    )
    return Table(list(result.rows), list(result.columns), result.values)


def ours_channels_last(case: Case) -> Table:
    if not any(isinstance(module, nn.Conv2d) for module in case.model_x.modules()):
        raise NotImplementedError("channels_last is for images")
    return ours(case, channels_last=True)


def torch_cka(case: Case) -> Table:
    from torch_cka import CKA

    tool = CKA(case.model_x, case.model_y, "x", "y", case.layers_x, case.layers_y, device="cpu")
    tool.compare(case.loader())
    return Table(list(tool.model1_features), list(tool.model2_features), tool.hsic_matrix.detach().numpy())


def pytorch_cka(case: Case) -> Table:
    from cka import compute_cka

    (values,) = compute_cka(
        case.model_x,
        case.model_y,
        case.loader(),
        layers=case.layers_x,
        model2_layers=case.layers_y,
        device="cpu",
        progress=False,
    )
    return Table(case.layers_x, case.layers_y, values.numpy())


def cka_pytorch(case: Case) -> Table:
    from cka_pytorch import CKACalculator

    tool = CKACalculator(case.model_x, case.model_y, case.layers_x, case.layers_y, verbose=False)
    values = tool.calculate_cka_matrix(case.loader(), num_epochs=1)
    return Table(tool.hook_manager1.module_names, tool.hook_manager2.module_names, values.numpy())


def ckatorch(case: Case) -> Table:
    from ckatorch import CKA

    tool = CKA(case.model_x, case.model_y, case.layers_x, case.layers_y, "x", "y")
    values = tool(case.loader(targets=False), epochs=1)
    return Table(list(tool.first_features), list(tool.second_features), values.numpy())


TOOLS: dict[str, tuple[Callable[[Case], Table | None], str, str]] = {
    # name: (function, distribution, module)
    "forward alone": (floor, "torch", "torch"),
    "cka_probe": (ours, "cka-probe", "cka_probe.comparison"),
    "channels_last": (ours_channels_last, "cka-probe", "cka_probe.comparison"),
    "pytorch-cka": (pytorch_cka, "pytorch-cka", "cka"),
    "cka-pytorch": (cka_pytorch, "cka-pytorch", "cka_pytorch"),
    "torch_cka": (torch_cka, "torch-cka", "torch_cka"),
    "ckatorch": (ckatorch, "ckatorch", "ckatorch"),
}


def available() -> dict[str, str]:
    """Import all tools, since imports are not measured. Return the error of each that cannot be imported."""
    failed = {}
    for name, (_, _, module) in TOOLS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except ImportError as error:
            failed[name] = f"cannot be imported: {error}"
    return failed


def run(name: str, case: Case) -> tuple[float, Table | None]:
    """Seconds and result of one pass. Hooks that a tool leaves on the networks are removed."""
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            table = TOOLS[name][0](case)
            return time.perf_counter() - start, table
    finally:
        for net in (case.model_x, case.model_y):
            net.eval()
            for module in net.modules():
                module._forward_hooks.clear()


class quiet:  # noqa: N801 - reads as a word in a with statement
    """Hide progress bars that cannot be turned off."""

    def __enter__(self) -> None:
        self.stderr, sys.stderr = sys.stderr, Path(os.devnull).open("w")

    def __exit__(self, *_: object) -> None:
        sys.stderr.close()
        sys.stderr = self.stderr
