"""Measurements during training: CKA of teacher and student, and the angles between gradients of the loss terms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...capture.batches import call_model
from ...capture.layers import Layers
from ...capture.state import buffers_restored, modes_restored, random_states_restored
from ...capture.wrappers import compiled_parts, eagerly
from ...comparison.models import compare
from ...similarity.matrix import SimilarityMatrix
from ..taps.tapped_model import TappedModel
from .batch_parts import samples_in, split_batch
from .batches import MINIMUM_BATCH, Batch

__all__ = ["Diagnostics", "gradient_cosines", "measured", "pair_similarities", "similarities"]


@dataclass(frozen=True)
class Diagnostics:
    """When to measure during a run, and on how many samples. Measurements do not change the trained weights.

    Parameters
    ----------
    every : int
        Number of epochs between measurements; the last epoch is always measured. Measured are the CKA of each tapped
        pair on test samples, with its chance level and standard error, and the cosine between the gradients of the loss
        terms on a training batch.
    samples : int
        Test samples for the CKA.
    heatmap_every : int, optional
        Number of epochs between heatmaps: the CKA of all layers of teacher and student as a picture and a file in
        ``output_dir/heatmaps``. None draws no heatmaps.
    heatmap_layers : layers, optional
        Layers of both networks, as in `cka_probe.compare`; the tapped layers if None.

    Raises
    ------
    ValueError
        If a number is not positive, or ``samples`` is below 4.

    Examples
    --------
    >>> Diagnostics(every=5, heatmap_every=20, heatmap_layers="blocks")
    Diagnostics(every=5, samples=512, heatmap_every=20, heatmap_layers='blocks')
    """

    every: int = 10
    samples: int = 512
    heatmap_every: int | None = None
    heatmap_layers: Layers | None = None

    def __post_init__(self) -> None:
        for name in ("every", "samples", "heatmap_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.samples < MINIMUM_BATCH:
            raise ValueError(f"`samples` must be at least {MINIMUM_BATCH}, got {self.samples}.")


def measured(
    diagnostics: Diagnostics,
    epoch: int,
    last: bool,
    networks: tuple[TappedModel, TappedModel],
    loader: Iterable[Any],
    layers: tuple[list[str], list[str]],
    cosines: Callable[[], list[dict[str, Any]]],
    processes: int = 1,
) -> tuple[list[dict[str, Any]], SimilarityMatrix | None]:
    """What is measured after an epoch: lines for the table, and the matrix of the heatmap if one is due.

    Parameters
    ----------
    diagnostics : Diagnostics
        Says what is due.
    epoch : int
        Counted from 1.
    last : bool
        Whether the run ends here.
    networks : (TappedModel, TappedModel)
        Teacher and student.
    loader : iterable of batches
        The test data.
    layers : (list of str, list of str)
        The tapped layers of teacher and student. If there are none, the outputs of the networks are compared.
    cosines : callable
        Gives the lines of `gradient_cosines`.
    processes : int
        Number of processes, each with its part of the data.
    """
    share = -(-diagnostics.samples // processes)
    agreement = partial(similarities, *networks, loader, share, distributed=processes > 1)
    tapped: tuple[Layers, Layers] = layers if layers[0] else ("", "")
    lines: list[dict[str, Any]] = []
    if last or epoch % diagnostics.every == 0:
        matrix = agreement(tapped)
        pairs = zip(*layers, strict=True) if layers[0] else zip(matrix.rows, matrix.columns, strict=True)
        lines = pair_similarities(epoch, matrix, list(pairs)) + cosines()
    if not diagnostics.heatmap_every or epoch % diagnostics.heatmap_every:
        return lines, None
    chosen = diagnostics.heatmap_layers
    return lines, agreement(tapped if chosen is None else (chosen, chosen))


def similarities(
    master: TappedModel,
    pupil: TappedModel,
    loader: Iterable[Any],
    samples: int,
    layers: tuple[Layers, Layers],
    distributed: bool = False,
) -> SimilarityMatrix:
    """CKA between layers of the teacher (rows) and of the student (columns) on the first samples of a loader.

    Parameters
    ----------
    master, pupil : TappedModel
        Teacher and student, on their device.
    loader : iterable of batches
        Pairs (input, label) or dicts with "labels".
    samples : int
        Least number of samples; whole batches are used.
    layers : tuple
        Layers of the teacher and of the student, as in `cka_probe.compare`.
    distributed : bool
        Whether `loader` gives only this process's part of the data.

    Returns
    -------
    SimilarityMatrix
        With standard errors and chance levels.
    """

    def call(model: nn.Module, inputs: Any) -> Any:
        own = (master if model is master.model else pupil).calls
        return call_model(model, inputs) if own is None else own(model, inputs)

    own_forward = not (master.calls is None and pupil.calls is None)

    def first_batches() -> Iterable[Any]:
        seen = 0
        for batch in loader:
            inputs, _ = split_batch(batch, labelled=False)
            # `compare` would read a list as (input, target); a tuple goes to networks of several inputs.
            yield inputs if own_forward or isinstance(inputs, (Tensor, dict)) else (*inputs,)
            seen += samples_in(inputs)
            if seen >= samples:
                return

    with modes_restored(master.model, pupil.model):
        return compare(
            master.model,
            pupil.model,
            first_batches(),
            forward=call if own_forward else None,
            layers=layers[0],
            layers_y=layers[1],
            distributed=distributed,
            progress=False,
        )


def pair_similarities(epoch: int, matrix: SimilarityMatrix, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """CKA, chance level and standard error of each pair (teacher layer, student layer), one dict for each pair.

    Parameters
    ----------
    epoch : int
        Counted from 1.
    matrix : SimilarityMatrix
        From `similarities`.
    pairs : sequence of (str, str)
        Layer of the teacher and layer of the student.

    Returns
    -------
    list of dict
        Keys epoch, quantity ("cka"), first, second, value, chance and standard_error.
    """
    lines = []
    for first, second in pairs:
        cell = (matrix.rows.index(first), matrix.columns.index(second))
        lines.append(
            {
                "epoch": epoch,
                "quantity": "cka",
                "first": first,
                "second": second,
                "value": float(matrix.values[cell]),
                "chance": None if matrix.chance is None else float(matrix.chance[cell]),
                "standard_error": None if matrix.standard_error is None else float(matrix.standard_error[cell]),
            }
        )
    return lines


def gradient_cosines(
    epoch: int,
    pupil: TappedModel,
    teach: Callable[[Batch], Any],
    terms_of: Callable[..., dict[str, Tensor]],
    batch: Batch,
    accelerator: Any,
) -> list[dict[str, Any]]:
    """Norm of the gradient of each weighted term for one batch, and cosine between the gradients of each two terms.

    With a cosine below 0 two terms work against each other. A term with a much smaller norm has little effect.

    Parameters
    ----------
    epoch : int
        Counted from 1.
    pupil : TappedModel
        The student. Its buffers and modes, and the random states, are restored at the end.
    teach, terms_of : callable
        As in `steps.accumulated_gradient`.
    batch : Batch
        Training samples.
    accelerator : Accelerator
        For mixed precision and the mean over processes.

    Returns
    -------
    list of dict
        Keys epoch, quantity ("gradient norm" or "gradient cosine"), first, second, value. Cosines are in [-1, 1],
        and NaN for a term without gradient.
    """
    parameters = [parameter for parameter in pupil.parameters() if parameter.requires_grad]
    # Compiled code frees what its backward needs after the first of the gradients.
    with random_states_restored(), modes_restored(pupil), buffers_restored(pupil), eagerly(compiled_parts(pupil)):
        pupil.train()
        with accelerator.autocast():
            outputs = pupil(batch.inputs).in_float32()
        gradients = {}
        for name, term in terms_of(outputs, teach(batch), batch.target).items():
            found: Sequence[Tensor | None] = [None] * len(parameters)
            if term.requires_grad:
                found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            flat = [
                (torch.zeros_like(parameter) if gradient is None else gradient).double().flatten()
                for parameter, gradient in zip(parameters, found, strict=True)
            ]
            gradients[name] = accelerator.reduce(torch.cat(flat), reduction="mean")
    lines = [
        {"epoch": epoch, "quantity": "gradient norm", "first": name, "second": "", "value": float(gradient.norm())}
        for name, gradient in gradients.items()
    ]
    for (first, x), (second, y) in itertools.combinations(gradients.items(), 2):
        cosine = float(x @ y / (x.norm() * y.norm()))
        lines.append({"epoch": epoch, "quantity": "gradient cosine", "first": first, "second": second, "value": cosine})
    return lines
