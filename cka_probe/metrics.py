"""CKA as a metric of torchmetrics, for those who log metrics while a network trains."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from .capture.extras import require

require("torchmetrics", "distill", "cka_probe.metrics")

from torchmetrics import Metric  # noqa: E402

from .estimators.kernels import Kernel  # noqa: E402
from .estimators.minibatch import MinibatchCKA  # noqa: E402
from .estimators.validation import check_pair  # noqa: E402

__all__ = ["CKA"]


class CKA(Metric):
    """CKA of two layers over a stream of minibatches, as a torchmetrics Metric.

    It holds the float64 sums of ``MinibatchCKA``, which are added up across processes.

    Parameters
    ----------
    kernel : Kernel, optional
        Linear when left out. A median bandwidth is taken anew for each minibatch.
    estimator : "unbiased" or "biased"
        Estimator of HSIC in the numerator and denominator of CKA.
    **kwargs
        Of ``torchmetrics.Metric``, such as ``sync_on_compute``.

    Raises
    ------
    TypeError, ValueError
        If the kernel or the estimator is not known.

    Examples
    --------
    >>> metric = CKA()
    >>> generator = torch.Generator().manual_seed(0)
    >>> for _ in range(3):
    ...     x = torch.randn(32, 8, 4, 4, generator=generator)
    ...     metric.update(x, 2 * x + 1)
    >>> round(float(metric.compute()), 6)
    1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_upper_bound = 1.0

    cross: torch.Tensor
    self_x: torch.Tensor
    self_y: torch.Tensor
    samples: torch.Tensor
    left_out: torch.Tensor

    def __init__(self, *, kernel: Kernel | None = None, estimator: str = "unbiased", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Checks the options, so that a wrong one fails here.
        self.minimum = MinibatchCKA(kernel=kernel, estimator=estimator).minimum
        self.kernel = kernel
        self.estimator = estimator
        for name in ("cross", "self_x", "self_y"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("samples", "left_out"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add one minibatch.

        Parameters
        ----------
        x, y : tensor (n, ...)
            Activations of both layers for the same samples; axes after the first are flattened. A batch of fewer than 4
            samples (biased: 2), as at the end of an epoch, is left out with a warning.

        Raises
        ------
        TypeError
            Unless both are real floating tensors.
        ValueError
            If the numbers of samples or the devices differ, or a value is NaN or infinite.
        """
        for value, name in ((x, "x"), (y, "y")):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}.")
            if value.ndim == 0:
                raise ValueError(f"`{name}` must have shape (samples, ...), got a single number.")
        if not len(x) and not len(y):
            return
        x, y = (z.detach().flatten(1) if z.ndim > 1 else z.detach()[:, None] for z in (x, y))
        _, x, y = check_pair(x, y, minimum=1)
        if len(x) < self.minimum:
            if not self.left_out:
                warnings.warn(
                    f"CKA leaves out a batch of {len(x)} samples: the {self.estimator} estimator needs at least "
                    f"{self.minimum}. Use drop_last=True or another batch size.",
                    stacklevel=2,
                )
            self.left_out += len(x)
            return
        statistics = MinibatchCKA(kernel=self.kernel, estimator=self.estimator, skewness=False)
        statistics.update([x], [y])
        for name in ("cross", "self_x", "self_y"):
            setattr(self, name, getattr(self, name) + statistics.sums[name].reshape(()).to(self.cross.device))
        self.samples += len(x)

    def compute(self) -> torch.Tensor:
        """CKA over all minibatches of all processes.

        Returns
        -------
        tensor () of float64
            At most 1; the unbiased value may be negative. NaN if a layer was constant, or no minibatch was added.
        """
        product = torch.sqrt(self.self_x) * torch.sqrt(self.self_y)
        return torch.where(product > 0, self.cross / product, torch.full_like(product, torch.nan))
