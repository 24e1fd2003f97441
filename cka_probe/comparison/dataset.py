"""Compute the similarities of models over a whole data set (``scope="dataset"``), in one or several passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from ..capture.batches import batch_count
from ..capture.boundaries import OTHER_SAMPLES as OTHER_ORDER
from ..capture.hooks import check_same_layers
from ..capture.progress import OtherDataError
from ..capture.sample_order import SampleOrder
from ..capture.sources import cut, is_one_batch
from ..capture.state import device_of
from ..capture.streaming import Consume, Pass
from ..similarity.matrix import SimilarityMatrix
from .dataset_checkpoint import DatasetCheckpoint
from .dataset_pass import DatasetPass
from .dataset_together import end_pass_together
from .feature_blocks import FeatureFile
from .feature_keeper import FeatureKeeper
from .held import StartAgainError
from .output_answers import Answers
from .request import ComparedModel, Request
from .route_choice import weigh_routes
from .same_samples import OtherSamplesError, OwnGenerators, SameSamples
from .together import Ended, Together

__all__ = ["batches_of", "can_be_read_again", "run_dataset"]

OTHER_SAMPLES = (
    "`data` gives other samples, or another order, each time it is read, so it was read once, by another route. To "
    "let the layers take several passes, turn shuffling and random augmentation off"
)

OTHER_IN_PROCESS = (
    "`data` gives other samples, or another order, each time it is read, but some layers at a time take several "
    "passes. Turn shuffling and random augmentation off, or give more `memory`"
)


def run_dataset(
    models: Sequence[ComparedModel], request: Request, meta: dict[str, Any], together: Together
) -> SimilarityMatrix:
    """Similarities of the models over all samples.

    The first batch shows how wide the layers are, and how long the forward passes take. By that the route is chosen:
    one pass over the data or several, with features in memory or on the disk.

    Parameters
    ----------
    models : sequence of ComparedModel
        One, two, or with ``request.square`` any number.
    request : Request
        The options.
    meta : dict
        Added to ``meta`` of the result.
    together : Together
        The processes that compare together, inside its ``with`` block.

    Returns
    -------
    SimilarityMatrix
        The first model against the second; all layers against each other for one model or with ``request.square``.

    Raises
    ------
    ValueError, TypeError, CaptureError, OSError
        As ``compare``.
    KeyboardInterrupt
        If the user stops before a batch was used, or in the first of several passes.
    """
    with ExitStack() as files:
        home = device_of(models[0].model) if request.device is None else torch.device(request.device)
        kept = DatasetCheckpoint(models, request, home, together.world)
        together.start(kept.identity)
        again, batches = can_be_read_again(request), batches_of(request)
        gathered = DatasetPass(request, home, again=again, batches=batches, together=together)
        order, generators = SameSamples(), OwnGenerators(request.data, request.data_y)
        notes: dict[str, None] = {}
        names: list[list[str]] = []
        answers: Answers | None = None
        earlier = None if kept.saved is None else kept.saved.state
        goes_on = kept.within
        if earlier is not None:
            file = kept.restore(gathered, order)
            names, notes = earlier["names"], dict.fromkeys(earlier["notes"])
        while True:
            keeping = gathered.keeping()
            if goes_on and file is not None:
                keeping.file = files.enter_context(file)
            elif gathered.may_write:
                new = kept.new_file if kept else FeatureFile
                keeping.open_file = lambda new=new: files.enter_context(new())
            recorders = [request.recorder(model, FeatureKeeper(keeping, side)) for side, model in enumerate(models)]
            gathered.begin(recorders, keeping, goes_on=goes_on)
            digest = SampleOrder(every_number=True) if gathered.again or kept else None
            run = request.make_pass(recorders, 1, order=digest, label=gathered.label)
            generators.begin()
            if answers is None or (gathered.passes_done == 0 and not goes_on):
                answers = Answers(recorders, request)
                if earlier is not None:
                    answers.restore(earlier["answers"])
            # Each pass sees the same answers.
            consume: Consume = answers.after(run, gathered.consume) if gathered.passes_done == 0 else gathered.consume
            if kept.saved is not None:
                consume = kept.checked(gathered, consume)
            save = partial(kept.save, run, gathered, answers, order, notes=notes, names=names)

            def after(run: Pass = run, order: SameSamples = order, save: Callable[[], None] = save) -> None:
                order.see(run)
                if kept.saved is not None and not kept.within and run.done == 1:
                    kept.check_first(gathered)
                if kept.is_due(run, gathered):
                    save()
                together.look()

            try:
                progress = kept.saved.progress if goes_on and kept.saved is not None else None
                run.run(request.data, consume, data_y=request.data_y, after=after, resumed=progress)
                if not run.interrupted:
                    order.end_pass()
            except StartAgainError:
                gathered.restart()
                order.restart()
                kept.remove()  # what was saved does not fit the file of features that is made new
                kept.saved, earlier, goes_on = None, None, False
                continue
            except OtherSamplesError:
                if kept.saved is not None:
                    raise ValueError(f"{kept.path} {OTHER_ORDER}") from None
                if together:
                    raise ValueError(OTHER_IN_PROCESS) from None
                kept.remove()
                gathered.read_once(OTHER_SAMPLES)
                order = SameSamples()
                continue
            except OtherDataError as error:
                raise ValueError(f"{kept.path} {error}") from None
            if not together:
                run.require_batches()
            elif gathered.route is None:  # no batch in this process
                weigh_routes(gathered, [], 0)
                if gathered.route is not None and gathered.route.name in ("moments", "sketch"):
                    gathered.start_statistics()
            if run.interrupted:
                together.stop()
            if run.interrupted and gathered.lasting:
                save()
            ended = Ended(run.interrupted, run.notes)
            if together:
                last = gathered.passes_done + 1 >= gathered.passes
                ended = end_pass_together(gathered, interrupted=run.interrupted, notes=run.notes, last=last)
            notes |= dict.fromkeys(ended.notes)
            if not names:
                names = [list(recorder.names) for recorder in recorders]
            for recorder, before in zip(recorders, names, strict=True):
                check_same_layers(recorder.name, before, recorder.names)
            kept.saved, earlier, goes_on = None, None, False
            if ended.interrupted and gathered.passes_done == 0 and gathered.passes > 1:
                raise KeyboardInterrupt
            if not (ended.interrupted and gathered.passes_done):
                gathered.end_pass()  # else this pass has seen a part of the samples only
            if ended.interrupted or gathered.passes_done >= gathered.passes:
                if together:
                    answers.all_reduce()
                meta = {**meta, **answers.found(), "partial": ended.interrupted}
                found = gathered.result([*notes, *answers.notes()], meta)
                if not ended.interrupted:
                    kept.remove()
                return found
            gathered.batches = 0
            kept.save(run, gathered, answers, order, notes=notes, names=names)


def can_be_read_again(request: Request) -> bool:
    """Whether the data can be read more than once: an iterator cannot."""
    return all(
        is_one_batch(data) or not hasattr(data, "__next__")
        for data in (request.data, request.data_y)
        if data is not None
    )


def batches_of(request: Request) -> int | None:
    """Number of batches, if it is certain."""
    if is_one_batch(request.data):
        return len(cut(request.data)) if request.forward is None and request.sample_axis == 0 else 1
    return batch_count(request.data)
