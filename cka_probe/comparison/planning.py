"""Weigh the routes of a comparison over a whole data set by its first batch, without comparing anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from ..capture.state import device_of
from ..estimators.dataset.routes import Route, best_route, plan_routes
from .dataset import batches_of, can_be_read_again
from .dataset_pass import DatasetPass
from .feature_keeper import FeatureKeeper
from .held import StartAgainError
from .request import ComparedModel, Request
from .route_choice import PlannedError, measured_rates

__all__ = ["Plan", "plan_dataset"]


@dataclass(frozen=True)
class Plan:
    """The routes of a comparison.

    Attributes
    ----------
    routes : list of Route
        Every route, with its time and memory, or why it cannot be taken.
    chosen : Route or None
        The one that ``compare`` would take; None if none fits.
    memory : int
        Limit in bytes.
    samples : int or None
        Number of samples, as far as it is known.
    layers : int
        Number of layers; those that return their input do not count.
    features : int or None
        Bytes of the features of all samples.
    beside : int
        Bytes that the forward passes of the first batch took.
    """

    routes: list[Route]
    chosen: Route | None
    memory: int
    samples: int | None
    layers: int
    features: int | None
    beside: int


def plan_dataset(models: Sequence[ComparedModel], request: Request) -> Plan:
    """Run the models on the first batch, and weigh the routes by it.

    Parameters
    ----------
    models : sequence of ComparedModel
        As ``run_dataset``.
    request : Request
        For CKA over the whole data set.

    Raises
    ------
    ValueError, TypeError, CaptureError
        As ``compare``.
    """
    home = device_of(models[0].model) if request.device is None else torch.device(request.device)
    gathered = DatasetPass(request, home, again=can_be_read_again(request), batches=batches_of(request))
    gathered.plans_only = True
    while True:
        keeping = gathered.keeping()
        recorders = [request.recorder(model, FeatureKeeper(keeping, side)) for side, model in enumerate(models)]
        gathered.begin(recorders, keeping)
        run = request.make_pass(recorders, 1, label="plan")
        try:
            with suppress(PlannedError):
                run.run(request.data, gathered.consume, data_y=request.data_y)
                run.require_batches()
        except StartAgainError:
            gathered.restart()
            continue
        break
    size = gathered.size
    assert size is not None
    name = None
    with suppress(ValueError):
        name = best_route(gathered.plan, request.route).name
    rates = replace(measured_rates(home), forward=gathered.rates.forward)
    routes = plan_routes(size, gathered.memory, kernel=request.kernel, estimator=request.estimator, rates=rates)
    chosen = next((route for route in routes if route.name == name), None)
    return Plan(routes, chosen, gathered.memory, size.samples, len(size.widths), size.features, size.beside)
