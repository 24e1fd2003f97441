"""Compute the Gram matrix of a layer inside its hook; on a GPU without waiting for the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch

from ...capture.hooks import CaptureError
from ...capture.recorder import NotFiniteError
from ...estimators.gram_accuracy import MEAN_LIMIT, doubtful, mean_over_spread
from ...estimators.kernels import Kernel, Linear
from ...estimators.layer_grams import FEW, LayerGram, Mode, layer_gram, less_mean, repeated_gram
from .cuda import by_cupy, half_gram, tf32_products
from .side_stream import CudaStreams, SideStream, Streams
from .triton_gram import pays, tensor_core_gram

__all__ = ["COST", "HALF_LIMIT", "GramKeeper"]

COST = 6e-7 / MEAN_LIMIT
"""float32 error of CKA per unit of ``mean_over_spread``."""

HALF_LIMIT = 1e-5 / COST
"""Largest ``mean_over_spread`` of raw features in half precision on a GPU.

These features carry a rounding of 4e-3 themselves, and their raw product is ten times faster than one in float32."""


class GramKeeper:
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

    Attributes
    ----------
    takes_half : bool
        Always True: the features may be in half precision.
    reviewed : bool
        Whether ``review`` is called after every forward; set by the recorder.
    modes : dict of str to str
        How the features of each layer are prepared next: "raw", "shifted" or "scaled".

    Examples
    --------
    >>> GramKeeper(Linear())("fc", torch.tensor([[1.0], [2.0], [0.0], [1.0]])).gram.shape
    torch.Size([4, 4])
    """

    takes_half = True

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        backend: str = "torch",
        tf32: bool = False,
        overlap: bool = False,
        deferred: bool | None = None,
        streams: Callable[[torch.device], Streams] = CudaStreams,
    ) -> None:
        self.kernel = kernel or Linear()
        self.backend = backend
        self.tf32 = tf32
        self.overlap = overlap
        self.deferred = deferred
        self._streams = streams
        self._side_stream: SideStream | None = None
        self._linear = isinstance(self.kernel, Linear)
        self.reviewed = False
        self.modes: dict[str, Mode] = {}
        self._careful: set[str] = set()
        self._half: set[str] = set()  # layers whose raw features are in half precision
        self._mean_squares: dict[str, torch.Tensor | None] = {}
        self._finite: dict[str, torch.Tensor] = {}
        self._batches: list[int] = []
        self._measures: list[torch.Tensor] = []

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
        if self.overlap and self._side_stream is None:
            self._side_stream = SideStream(self._streams(features.device))
        if not self._defers(features.device):
            features = _single(features)
            return self._repeated(name, features) or self._decided(name, features, MEAN_LIMIT)
        with tf32_products(features.device) if self.tf32 else nullcontext():
            mode = self.modes.get(name)
            if self._linear and mode is None:
                return self._first(name, features)
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
        features = _single(features)
        gram = by_cupy(self.kernel, features) if self.backend == "cupy" else self.kernel(features)
        return LayerGram(gram, 1.0, "raw"), torch.isfinite(features).all()

    def _repeated(self, name: str, features: torch.Tensor) -> LayerGram | None:
        """The Gram matrix prepared as in the minibatch before, for ``review``; None if a new decision is needed."""
        mode = self.modes.get(name) if self._linear and self.reviewed and name not in self._careful else None
        if mode not in ("raw", "shifted") or len(features) < FEW:
            return None
        if mode == "raw":
            gram, self._mean_squares[name] = features @ features.T, None
        else:
            gram, self._mean_squares[name] = less_mean(features)
        return LayerGram(gram, 1.0, mode)

    def review(self, kept: Mapping[str, LayerGram]) -> bool:
        """Return whether the Gram matrices of this forward are valid. If not, the model must run on the batch again.

        For a layer whose repeated decision was wrong, a new decision is made in every later minibatch. With
        ``overlap``, a layer whose features were changed in place is no longer read on the second stream. Every False
        adds at least one such layer, so the number of passes is finite.

        Parameters
        ----------
        kept : mapping of str to LayerGram
            The Gram matrices by layer.
        """
        if self._side_stream is not None and not self._side_stream.end_forward():
            return False
        asked, self._mean_squares = self._mean_squares, {}
        for shifted in (False, True):
            groups: dict[torch.dtype, list[str]] = {}
            for name, square in asked.items():
                if (square is not None) == shifted:
                    groups.setdefault(kept[name].gram.dtype, []).append(name)
            for names in groups.values():
                squares = [square for name in names if (square := asked[name]) is not None]
                grams = torch.stack([kept[name].gram for name in names])
                doubts = doubtful(grams, torch.stack(squares) if shifted else None).tolist()
                self._careful.update(name for name, doubt in zip(names, doubts, strict=True) if doubt)
        return not self._careful.intersection(asked)

    def _first(self, name: str, features: torch.Tensor) -> LayerGram:
        half = _is_half(features)
        result = self._decided(name, _single(features), (HALF_LIMIT if half else MEAN_LIMIT) / 2)
        # These test torch and the compiler now, while waiting for the GPU is allowed.
        if result.mode == "raw" and half:
            half_gram(features[:1])
        else:
            pays(features)
        return result

    def _decided(self, name: str, features: torch.Tensor, limit: float) -> LayerGram:
        result = layer_gram(features, self.kernel, limit=limit)
        if len(features) > 3:  # with fewer rows `mean_over_spread` is undefined, and the features are always scaled
            self.modes[name] = result.mode
        # `layer_gram` gives the float 1.0 as factor of the linear kernel only if it found the sums finite.
        passed = self._linear and isinstance(result.factor, float)
        if not passed and not bool(torch.isfinite(result.gram).all()) and not bool(torch.isfinite(features).all()):
            raise NotFiniteError
        return result

    def observe(self, batch: int, names: Sequence[str], stack: torch.Tensor, rows: torch.Tensor) -> None:
        """Gather on the device whether the Gram matrices of one minibatch are finite and accurate.

        Parameters
        ----------
        batch : int
            Number of the minibatch, for messages.
        names : sequence of str
            The layers.
        stack : tensor (layers, n, n)
            Their Gram matrices, scaled to magnitude 1.
        rows : tensor (layers, n * n)
            The same Gram matrices, centred.
        """
        if not self._defers(stack.device):
            return
        if self._linear and stack.shape[-1] > 3:
            measure = mean_over_spread(stack)
            # A layer that is constant in this minibatch is exactly zero, so it has no rounding error.
            measure = torch.where((rows == 0).all(1), 0.0 * measure.nan_to_num(posinf=0.0, nan=torch.nan), measure)
        else:
            measure = (
                0.0 * stack.sum((1, 2), dtype=torch.float64) if self._linear else stack.new_zeros(len(names)).double()
            )
            for place, name in enumerate(names):
                if name in self._finite:
                    measure[place].masked_fill_(~self._finite[name], torch.nan)
        self._finite = {}
        self._batches.append(batch)
        self._measures.append(measure)

    def finish(self, model: str, names: Sequence[str]) -> list[str]:
        """Read what ``observe`` gathered since the last call.

        Parameters
        ----------
        model : str
            Name of the model in messages.
        names : sequence of str
            The layers.

        Returns
        -------
        list of str
            A note for each layer whose mean lay too far above its spread in a later minibatch, with the error.

        Raises
        ------
        CaptureError
            If a layer gave NaN or infinity; the message names model, layer and minibatch.
        """
        if not self._measures:
            return []
        measures = torch.stack(self._measures).cpu()
        batches, self._batches, self._measures = self._batches, [], []
        bad = measures.isnan().nonzero()
        if len(bad):
            batch, layer = bad[0].tolist()
            raise CaptureError(
                f"Layer {names[layer]!r} of {model} gave NaN or infinity in batch {batches[batch]}, or numbers whose "
                "squares are infinite. Check the input and weights; half precision may have overflowed."
            )
        notes = []
        for layer, name in enumerate(names):
            if self.modes.get(name, "scaled") != "raw":
                continue
            limit = HALF_LIMIT if name in self._half else MEAN_LIMIT
            beyond = [(float(m), b) for m, b in zip(measures[:, layer], batches, strict=True) if m > limit]
            if beyond:
                worst, batch = max(beyond)
                error = "more than 4e-5" if math.isinf(worst) else f"up to {COST * worst:.0e}"
                notes.append(
                    f"{model}: in {len(beyond)} of {len(batches)} batches, most in batch {batch}, the mean of {name!r} "
                    f"lay further above its spread than in the first batch, which decides on a GPU how the layer is "
                    f"centred. The rounding error of its values there is {error}. Shuffle the data, or compare on the "
                    "CPU."
                )
        return notes


def _is_half(features: torch.Tensor) -> bool:
    """Whether the features are in half precision and have enough samples for a Gram matrix in float32."""
    return features.dtype in (torch.float16, torch.bfloat16) and len(features) >= FEW


def _single(features: torch.Tensor) -> torch.Tensor:
    """The features in float32; features in float64 are returned unchanged."""
    return features if features.dtype in (torch.float32, torch.float64) else features.float()
