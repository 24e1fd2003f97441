"""What the choice of a route over a whole data set rests on: the speed of this machine, and the memory for features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..estimators.dataset.data_size import DataSize, Rates
from ..estimators.dataset.gram_stack import stack_bytes
from ..estimators.dataset.routes import ADVICE, ROUTES, Route, best_route, plan_routes
from .dataset_together import join_layers
from .feature_blocks import FeatureFile, disk_room
from .feature_keeper import Keeping
from .held import Held, StartAgainError, slab_bytes
from .memory import memory_text

if TYPE_CHECKING:
    from .dataset_pass import DatasetPass

__all__ = ["PlannedError", "check_stack", "features_route", "first_batch_rates", "measured_rates", "weigh_routes"]

ENOUGH = 2**26
"""Bytes that must have been written before their time says how fast the disk is."""


class PlannedError(Exception):
    """The routes are weighed, and no more is wanted of the pass."""


def weigh_routes(gathered: DatasetPass, layers: Sequence[Held | None], rows: int) -> None:
    """Weigh all routes by the first batch of ``rows`` rows, and choose one unless a plan is all that is wanted.

    Of several processes all weigh the same, also one without a batch (and without layers).

    Raises
    ------
    ValueError
        If no route fits into the memory, or the one that was asked for does not.
    StartAgainError
        If the Gram matrices that the hooks have computed do not fit.
    """
    request, keeping = gathered.request, gathered.kept_by
    samples = rows if gathered.held else gathered.expected_samples(rows)
    itemsize = max((held.dtype.itemsize for held in layers if held is not None), default=0)
    if request.measure != "cka":
        one = {"samples": samples or rows, "itemsize": itemsize, "memory": gathered.memory}
        all_of = join_layers(gathered, one if layers else None) if gathered.together else [one]
        count, itemsize = sum(one["samples"] for one in all_of), max(one["itemsize"] for one in all_of)
        gathered.memory = min(one["memory"] for one in all_of)
        size = itemsize * count * sum(gathered.widths)
        gathered.route = features_route(request.measure, size, None if gathered.held else gathered.memory)
        _check_room(gathered, size)
        return
    rates = first_batch_rates(Rates(), keeping, samples, rows)
    found: dict[str, Any] = {
        "samples": samples,
        "itemsize": itemsize,
        "batch": rows,
        "again": gathered.again,
        "disk": 0 if gathered.held else gathered.disk,
        "beside": 0 if keeping is None else keeping.meter.most + 2 * slab_bytes(gathered.memory),
        "memory": gathered.memory,
        "forward": rates.forward,
    }
    every = join_layers(gathered, found if layers else None) if gathered.together else [found]
    counts = [one["samples"] for one in every]
    split = gathered.split
    data = DataSize(
        None if None in counts else sum(counts),
        gathered.widths[:split],
        None if split is None else gathered.widths[split:],
        itemsize=max(one["itemsize"] for one in every),
        batch=max(one["batch"] for one in every),
        batches=1 if gathered.at_once else None,
        again=all(one["again"] for one in every),
        held=gathered.held,
        disk=min(one["disk"] for one in every),
        beside=max(one["beside"] for one in every),
        processes=gathered.together.world,
        most=None if None in counts else max(counts),
    )
    gathered.rates = rates = replace(rates, forward=max(one["forward"] for one in every))
    if gathered.together:
        gathered.rates = rates = replace(Rates(), forward=rates.forward)  # the same in all
    gathered.memory = min(one["memory"] for one in every)
    gathered.size = data
    gathered.plan = plan_routes(data, gathered.memory, kernel=request.kernel, estimator=request.estimator, rates=rates)
    gathered.planned = samples
    if gathered.at_once and not gathered.plan[ROUTES.index("grams")].fits:
        raise StartAgainError
    if not gathered.plans_only:
        gathered.route = best_route(gathered.plan, "grams" if gathered.at_once else request.route)
        _check_room(gathered, data.features or 0)


def _check_room(gathered: DatasetPass, size: int) -> None:
    """Find out whether the features that a checkpoint needs have room beside it."""
    gathered.no_room = gathered.disk < size
    if gathered.no_room and gathered.request.checkpoint is not None and gathered.route is not None:
        if gathered.route.name in ("moments", "sketch") or gathered.route.passes > 1:
            return
        gathered.notes.append(
            f"the folder of the checkpoint has no room for {memory_text(size)} of features, so that a run that is "
            "stopped begins again"
        )


def features_route(measure: str, size: int, memory: int | None) -> Route:
    """The one way of a measure that needs the features of all samples.

    Raises
    ------
    ValueError
        If they take more than ``memory``.
    """
    if memory is not None and size > memory:
        raise ValueError(
            f"{measure} needs the features of all samples, {memory_text(size)}, above the memory of "
            f'{memory_text(memory)}. Give more memory (memory="{-(-size * 5 // 4 // 2**30)}GiB"), fewer layers or '
            'samples, or a pooling that narrows the features (pooling="mean").'
        )
    return Route("features", f"{measure} needs the features of all samples, {memory_text(size)}", memory=size)


def check_stack(layers: int, samples: int, estimator: str, memory: int) -> None:
    """Raise ValueError if the Gram matrices do not fit, of data whose length was not known before."""
    needed = stack_bytes(layers, samples, estimator)
    if needed > memory:
        raise ValueError(
            f"The data had {samples} samples, and {layers} Gram matrices of them take {memory_text(needed)}, above the "
            f"memory of {memory_text(memory)}. {ADVICE}"
        )


def first_batch_rates(rates: Rates, keeping: Keeping | None, samples: int | None, rows: int) -> Rates:
    """The rates with what the first batch of ``rows`` rows has shown: the time of a forward pass, and of the disk."""
    if keeping is None:
        return rates
    rates = replace(rates, forward=keeping.forward_seconds * (samples or 0) / max(1, rows))
    if keeping.file is not None and keeping.file.size > ENOUGH:
        rates = replace(rates, disk=keeping.file.size / max(1e-3, keeping.file.seconds))
    return rates


def measured_rates(device: torch.device) -> Rates:
    """Measure products, memory and disk in about half a second. ``compare`` takes typical rates instead.

    So a comparison takes the same route each time, as long as it fits into one pass.
    """

    def seconds(run: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            out = run(*arguments)
            out.ravel()[0].item()  # waits for a GPU
            times.append(time.perf_counter() - started)
        return max(1e-6, min(times))

    size = 768
    single = torch.ones(size, size, device=device)
    rates = Rates(
        products=size**3 / seconds(torch.mm, single, single),
        wide_products=size**3 / seconds(torch.mm, single.double(), single.double()),
        memory=2**26 / seconds(torch.clone, torch.ones(2**24, device=device)) / 2,
    )
    if disk_room() < 2 * ENOUGH:
        return rates
    with FeatureFile() as file:
        file.write(torch.ones(2**10, ENOUGH // 2**12))
        return replace(rates, disk=file.size / max(1e-6, file.seconds))
