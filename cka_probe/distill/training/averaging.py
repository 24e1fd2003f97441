"""Exponential moving average of the student's weights (EMA), which is scored and saved in place of the student."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["WeightAverage", "check_decay"]


class WeightAverage:
    """Moving average of the weights and buffers of a network: torch's `AveragedModel`.

    After the first step it equals the network. After each later one it is ``decay`` times itself plus ``1 - decay``
    times the network. Running statistics of batch norm are averaged too. Integers (token positions, counts of batches)
    are those of the network.

    Parameters
    ----------
    network : torch.nn.Module
        Copied here, so it must be on its device and without taps.
    decay : float
        In (0, 1).

    Raises
    ------
    ValueError
        If ``decay`` is out of range, or the network cannot be copied.

    Attributes
    ----------
    network : torch.nn.Module
        A copy of the network with the averaged weights.

    References
    ----------
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30(4), 1992;
    with exponential weights as in Tarvainen and Valpola, Mean Teachers, NeurIPS 2017, equation 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        check_decay(decay)
        try:
            # A copy by hand first, so that an error of the copy is not taken for one of AveragedModel.
            copy = deepcopy(network)
        except Exception as error:  # whatever the user's modules hold
            raise ValueError(
                f"`ema` averages the weights in a copy of the student, but copy.deepcopy fails on this "
                f"{type(network).__name__} ({type(error).__name__}: {error}). Make it copyable, or leave ema out."
            ) from error
        self._average = AveragedModel(copy, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._average.requires_grad_(False)
        self._original = network
        self.network: nn.Module = self._average.module

    def update(self) -> None:
        """Count a finished step."""
        self._average.update_parameters(self._original)
        with torch.no_grad():
            # AveragedModel rounds the average of integers down: 7 may become 6.
            for averaged, buffer in zip(self.network.buffers(), self._original.buffers(), strict=True):
                if not (buffer.is_floating_point() or buffer.is_complex()):
                    averaged.copy_(buffer)

    def give(self) -> None:
        """Copy the averaged weights into the original network, once a step is finished."""
        if self._average.n_averaged > 0:
            self._original.load_state_dict(self.network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._average.load_state_dict(state)


def check_decay(decay: float) -> None:
    """Raise ValueError if the decay of an average is out of range."""
    if not 0 < decay < 1:
        raise ValueError(f"`ema` is the decay of the moving average and lies between 0 and 1, got {decay}.")
