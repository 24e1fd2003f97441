"""Compute the Gram matrix of a layer inside its hook; on a GPU without waiting for the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from ...capture.keeping import NotFiniteError
from ...capture.progress import Resumable
from ...capture.trees import move
from ...estimators.gram_accuracy import MEAN_LIMIT, mean_over_spread
from ...estimators.hsic import flat_centred
from ...estimators.kernels import KERNELS, Kernel, Linear
from ...estimators.layer_grams import FEW, LayerGram, Mode, float64_gram, layer_gram, repeated_gram, unit_stack
from .cuda import by_cupy, half_gram, tf32_products
from .drift import BatchMeans
from .findings import Findings
from .measures import FAR_WEIGHT, Measures
from .repeats import Repeats
from .side_stream import CudaStreams, SideStream, Streams
from .triton_gram import pays, tensor_core_gram

__all__ = ["COST", "HALF_LIMIT", "KERNEL_ERROR", "GramKeeper"]

COST = 6e-7 / MEAN_LIMIT
"""float32 error of CKA per unit of ``mean_over_spread``."""

KERNEL_ERROR = 1e-5
"""Largest relative error of a centred Gram matrix in float32 for which a GPU may compute a kernel so."""

HALF_LIMIT = 1e-5 / COST
"""Largest ``mean_over_spread`` of raw features in half precision on a GPU.

These features carry a rounding of 4e-3 themselves, and their raw product is ten times faster than one in float32."""


class GramKeeper(Resumable):
    """Compute the Gram matrix of each layer's features, and decide whether they must be centred first.

    On the CPU the decision is made in each minibatch, and NaN is found at once. If a recorder calls ``review``, a layer
    repeats the decision of the minibatch before, and ``review`` checks all layers together after the forward.

    On any other device, reading a number means waiting for all work before it. So the decision for each layer is made
    in the first minibatch, and later ones repeat it. ``observe`` gathers on the device whether the decision was right
    and all numbers were finite; ``finish`` reads this once.

    Parameters
    ----------
    kernel : Kernel, optional
        Linear when left out.
    backend : "torch" or "cupy"
        Library that computes kernels on an NVIDIA GPU.
    tf32 : bool
        Multiply float32 features in TF32 on an NVIDIA GPU.
    overlap : bool
        Compute on a second stream of an NVIDIA GPU from the second minibatch on. ``review`` then finds the features
        that were changed in place. It has an effect only under a recorder that calls ``review``.
    deferred : bool, optional
        Repeat the first decision, and report NaN and inaccuracy only in ``finish``; by default on every device but the
        CPU.
    streams : callable, optional
        Returns the streams of a device for ``overlap``.
    drift : bool
        Whether rows of the features are samples, so that ``batch_means`` can test whether minibatches differ by more
        than random subsets do.

    Attributes
    ----------
    takes_half : bool
        Always True: the features may be in half precision.
    takes_any_order : bool
        True for the kernels of this package, for which the order of the features does not matter.
    reviewed : bool
        Whether ``review`` is called after every forward; set by the recorder.
    batch_means : BatchMeans or None
        The means of one layer in the minibatches.
    findings : Findings
        What the minibatches showed about the layers.
    modes : dict of str to str
        How the features of each layer are prepared next: "raw", "shifted" or "scaled". For a kernel that is not linear,
        "scaled" means in float64.

    Examples
    --------
    >>> GramKeeper(Linear())("fc", torch.tensor([[1.0], [2.0], [0.0], [1.0]])).gram.shape
    torch.Size([4, 4])
    """

    takes_half = True
    lasting = ("modes", "_half", "_far")
    parts = ("findings", "batch_means", "_measures", "_repeats", "_side_stream")

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        backend: str = "torch",
        tf32: bool = False,
        overlap: bool = False,
        deferred: bool | None = None,
        streams: Callable[[torch.device], Streams] = CudaStreams,
        drift: bool = True,
    ) -> None:
        self.kernel = kernel or Linear()
        self.backend = backend
        self.tf32 = tf32
        self.overlap = overlap
        self.deferred = deferred
        self._streams = streams
        self._side_stream: SideStream | None = None
        self._linear = isinstance(self.kernel, Linear)
        self.takes_any_order = type(self.kernel) in KERNELS.values()
        self.reviewed = False
        self.batch_means = BatchMeans() if drift else None
        self.findings = Findings(self.kernel)
        self.modes: dict[str, Mode] = {}
        self._half: set[str] = set()  # layers whose raw features are in half precision
        self._repeats = Repeats()
        self._finite: dict[str, torch.Tensor] = {}
        self._far: dict[str, tuple[int, float]] = {}
        self._home: torch.device | None = None
        self._measures = Measures()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; its tensors are moved to where this keeper computes, as soon as that is known."""
        super().restore(state if self._home is None else move(state, self._home))

    def _defers(self, device: torch.device) -> bool:
        return device.type != "cpu" if self.deferred is None else self.deferred

    def __call__(self, name: str, features: torch.Tensor) -> LayerGram:
        """The Gram matrix of one layer and minibatch.

        Raises
        ------
        NotFiniteError
            If the features hold NaN or infinity, and ``deferred`` is not in effect.
        ValueError
            If ``overlap`` is set and the features are not on an NVIDIA GPU.
        """
        if self._home is None:
            self._home = features.device
            self.restore(self.state())
        if features.device != self._home:  # the network is spread over several devices
            features = features.to(self._home)
        if self.overlap and self._side_stream is None:
            self._side_stream = SideStream(self._streams(features.device))
        if self.batch_means is not None:
            self.batch_means.see(name, features)
        if not self._linear:
            self.findings.first(name, features)
        if not self._defers(features.device):
            single = _single(features)
            repeats = self._linear and self.reviewed
            known = self._repeats.gram(name, single, self.modes.get(name)) if repeats else None
            return known or self._decided(name, single, MEAN_LIMIT, features.dtype)
        with tf32_products(features.device) if self.tf32 else nullcontext():
            mode = self.modes.get(name)
            if mode is None:
                return self._first(name, features) if self._linear else self._first_of_kernel(name, features)
            if mode == "raw" and _is_half(features):
                self._half.add(name)
            side_stream = self._side_stream if self.reviewed else None
            if side_stream is not None and side_stream.takes(name, features):
                kept, finite = side_stream.run(name, features, lambda: self._later(features, mode))
            else:
                kept, finite = self._later(features, mode)
            if finite is not None:
                self._finite[name] = finite
            return kept

    def _later(self, features: torch.Tensor, mode: Mode | None) -> tuple[LayerGram, torch.Tensor | None]:
        """The Gram matrix prepared by ``mode``; if the kernel is not linear, also whether the features are finite."""
        if mode is not None and self._linear:
            if mode == "raw" and _is_half(features):
                return LayerGram(half_gram(features), 1.0, "raw"), None
            if mode != "scaled" and self.backend == "torch" and pays(features):
                return LayerGram(tensor_core_gram(features, tf32=self.tf32), 1.0, mode), None
            product = partial(by_cupy, self.kernel) if self.backend == "cupy" else None
            return repeated_gram(_single(features), mode, product), None
        features = features.double() if mode == "scaled" else _single(features)
        gram = by_cupy(self.kernel, features) if self.backend == "cupy" else self.kernel(features)
        return LayerGram(gram, 1.0, "raw"), torch.isfinite(features).all()

    def review(self, kept: Mapping[str, LayerGram]) -> bool:
        """Return whether the Gram matrices of this forward are valid. If not, the model must run on the batch again.

        As ``Repeats.review``. With ``overlap``, a layer whose features were changed in place is no longer read on the
        second stream. Every False changes how at least one layer is treated, so the number of passes is finite.

        Parameters
        ----------
        kept : mapping of str to LayerGram
            The Gram matrices by layer.
        """
        if self._side_stream is not None and not self._side_stream.end_forward():
            return False
        return self._repeats.review(kept)

    def _first(self, name: str, features: torch.Tensor) -> LayerGram:
        half = _is_half(features)
        result = self._decided(name, _single(features), (HALF_LIMIT if half else MEAN_LIMIT) / 2, features.dtype)
        # These test torch and the compiler now, while waiting for the GPU is allowed.
        if result.mode == "raw" and half:
            self._half.add(name)
            half_gram(features[:1])
        else:
            pays(features)
        return result

    def _first_of_kernel(self, name: str, features: torch.Tensor) -> LayerGram:
        """The Gram matrix of a kernel that is not linear, in float64. If float32 is as good, later ones use that."""
        exact = self._decided(name, _single(features), MEAN_LIMIT, features.dtype)
        if len(features) > 3:
            single = unit_stack([self.kernel(_single(features))], [1.0], estimator="unbiased")[0].double()
            double = unit_stack([exact.gram], [1.0], estimator="unbiased")[0]
            rows, exact_rows = flat_centred(single, "unbiased"), flat_centred(double, "unbiased")
            apart = float(torch.linalg.vector_norm(rows - exact_rows))
            good = apart <= KERNEL_ERROR * float(torch.linalg.vector_norm(exact_rows))
            self.modes[name] = "raw" if good else "scaled"
        return exact

    def _decided(self, name: str, features: torch.Tensor, limit: float, dtype: torch.dtype) -> LayerGram:
        """A new decision; ``dtype`` is that of the activation."""
        in_float64 = self._repeats.in_float64(name)
        result = float64_gram(features) if in_float64 else layer_gram(features, self.kernel, limit=limit)
        half = dtype not in (torch.float32, torch.float64)
        if result.mode == "scaled" or (name not in self.modes and (half or not self._linear)):
            self.findings.look(name, features, dtype, result.mean_over_deviation)
        self._far.pop(name, None)
        if result.far is not None:
            self._far[name] = result.far
        if not self._defers(features.device):
            self._repeats.learn(name, features, result, first=name not in self.modes and self.reviewed)
        if len(features) > 3:  # with fewer rows `mean_over_spread` is undefined, and the features are always scaled
            self.modes[name] = result.mode
        # `layer_gram` gives the float 1.0 as factor of the linear kernel only if it found the sums finite.
        passed = self._linear and isinstance(result.factor, float)
        if not passed and not bool(torch.isfinite(result.gram).all()):
            if not bool(torch.isfinite(features).all()):
                raise NotFiniteError
            self.findings.undefined.add(name)
        return result

    def observe(
        self, batch: int, names: Sequence[str], grams: Sequence[LayerGram], stack: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """Gather on the device whether the Gram matrices of one minibatch are finite and accurate.

        Parameters
        ----------
        batch : int
            Number of the minibatch, for messages.
        names : sequence of str
            The layers.
        grams : sequence of LayerGram
            Their Gram matrices.
        stack : tensor (layers, n, n)
            The same Gram matrices, scaled to magnitude 1.
        rows : tensor (layers, n * n)
            The same Gram matrices, centred.
        """
        self.findings.observe(names, grams, rows)
        if self.batch_means is not None:
            self.batch_means.end_batch(self.findings.flat)
        for name, far in self._far.items():
            self.findings.far_sample(name, batch, *far)
        self._far = {}
        if not self._defers(stack.device):
            return
        # The row of one far sample holds most of the squares.
        squares = (stack * stack).sum(-1, dtype=torch.float64)
        heaviest, sample = squares.max(-1)
        n = squares.shape[-1]
        weight = heaviest / (squares.sum(-1) - heaviest) * ((n - 1) / n)
        if self._linear and n > 3:
            measure = mean_over_spread(stack)
            # A layer that is constant in this minibatch is exactly zero, so it has no rounding error.
            constant = (rows == 0).all(1) & ~(weight > FAR_WEIGHT)
            measure = torch.where(constant, 0.0 * measure.nan_to_num(posinf=0.0, nan=torch.nan), measure)
        elif self._linear:
            measure = 0.0 * stack.sum((1, 2), dtype=torch.float64)
        else:
            # Infinite: the kernel is not finite though the features are.
            lost = ~torch.isfinite(stack).flatten(1).all(1)
            measure = torch.zeros_like(lost, dtype=torch.float64).masked_fill(lost, torch.inf)
            for place, name in enumerate(names):
                if name in self._finite:
                    measure[place].masked_fill_(~self._finite[name], torch.nan)
        self._finite = {}
        self._measures.add(batch, torch.stack([measure, sample.double(), weight]))

    def read(self, model: str, names: Sequence[str]) -> None:
        """Read from the device what ``observe`` gathered since the last call.

        Parameters
        ----------
        model : str
            Name of the model in messages.
        names : sequence of str
            The layers.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity; the message names model, layer and minibatch.
        """
        self._measures.read(model, {name: HALF_LIMIT if name in self._half else MEAN_LIMIT for name in names})

    def finish(self, model: str, names: Sequence[str]) -> list[str]:
        """Call ``read``, and tell what all minibatches so far showed.

        Parameters
        ----------
        model, names
            As in ``read``.

        Returns
        -------
        list of str
            A note for each layer whose mean lay too far above its spread in a later minibatch, with the error. Far
            samples, and layers for which the kernel is not defined, are added to ``findings``.

        Raises
        ------
        CaptureError
            As ``read``.
        """
        self.read(model, names)
        notes = []
        for name in names:
            above = self._measures.above.get(name)
            if above is None:
                continue
            error = "more than 4e-5" if math.isinf(above.measure) else f"up to {COST * above.measure:.0e}"
            if not self._linear:
                self.findings.undefined.add(name)
            elif above.far:
                self.findings.far_sample(name, above.batch, above.sample, math.inf, error)
            elif self.modes.get(name, "scaled") == "raw":
                notes.append(
                    f"{model}: in {above.number} of {self._measures.batches} batches, most in batch {above.batch}, the "
                    f"mean of {name!r} lay further above its spread than in the first batch, which decides on a GPU "
                    f"how the layer is centred. The rounding error of its values there is {error}. Shuffle the data, "
                    "or compare on the CPU."
                )
        return notes


def _is_half(features: torch.Tensor) -> bool:
    """Whether the features are in half precision and have enough samples for a Gram matrix in float32."""
    return features.dtype in (torch.float16, torch.bfloat16) and len(features) >= FEW


def _single(features: torch.Tensor) -> torch.Tensor:
    """The features in float32; features in float64 are returned unchanged."""
    return features if features.dtype in (torch.float32, torch.float64) else features.float()
