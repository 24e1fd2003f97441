"""What a comparison borrows and gives back: train or eval mode, device, grad mode, random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def borrowed(models: Sequence[nn.Module], device: torch.device | str | None = None) -> Iterator[None]:
    """Models in eval mode without gradients (on ``device``), and everything as it was on the way out.

    Restored whatever happens: the mode of every submodule, the device, grad mode, and the state of the random number
    generators of Python, numpy and torch. Compiled modules run eagerly inside, since compiled code may skip hooks.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    homes = [(model, device_of(model)) for model in models]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - users draw from it
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        for model in models:
            model.eval()
            if device is not None:
                model.to(device)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training
        if device is not None:
            for model, home in homes:
                model.to(home)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
