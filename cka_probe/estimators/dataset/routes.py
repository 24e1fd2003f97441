"""The ways to CKA over a whole data set, with the memory and the time of each, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..kernels import RBF, Kernel, Linear, given_kernel
from .data_size import DataSize, Rates
from .gram_stack import stack_bytes
from .layer_parts import WIDE, part_bytes
from .moment_layout import STRIP, Layout
from .moment_sums import NARROW, NUMBERS, ROWS

__all__ = [
    "ADVICE",
    "ROUTES",
    "SKETCH_SIZE",
    "Route",
    "Slice",
    "best_route",
    "choose_route",
    "plan_routes",
]

ROUTES = ("moments", "grams", "disk", "blocks", "sketch")

SKETCH_SIZE = 512
"""Largest number of random projections of each layer on the sketch route."""

LEAST_SKETCH = 64

LEAST_COLUMNS = 64
"""Fewest columns of a layer that a pass over the data may take; fewer would need too many passes."""

MOST_PASSES = 1000

ENTRY = 200
"""Bytes that ``Rates.memory`` counts for each entry of a Gram matrix: to centre it, pack it and leave samples out."""

PRODUCT = 250
"""The same for each product of two features of the moments: to add it up in parts, and to move it to the mean."""

PART = 0.75
"""Part of the free memory that features may take. The rest is for what the allocator cannot use."""


class Slice(NamedTuple):
    """Some columns of the layer at a place: what one pass over the data takes of it."""

    place: int
    start: int
    stop: int


@dataclass(frozen=True)
class Route:
    """One way to the values over a whole data set.

    Attributes
    ----------
    name : str
        "moments", "grams", "disk", "blocks" or "sketch".
    reason : str
        What it does, with its sizes, or why it cannot be taken.
    fits : bool
        Whether it can be taken.
    memory, disk : int
        Bytes that it takes.
    seconds : float
        Estimated time; NaN for a route that cannot be taken, infinite if the number of samples is not known.
    passes : int
        Number of times that the data are read.
    groups : tuple of tuples of Slice
        For "grams": what each pass takes.
    room : int
        For "disk": bytes of features that stay in memory.
    size : int
        For "sketch": number of projections of each layer.
    """

    name: str
    reason: str
    fits: bool = True
    memory: int = 0
    disk: int = 0
    seconds: float = math.nan
    passes: int = 1
    groups: tuple[tuple[Slice, ...], ...] = ()
    room: int = 0
    size: int = 0


def choose_route(
    samples: int | None,
    widths_x: Sequence[int],
    widths_y: Sequence[int] | None = None,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    memory: int = 4 * 2**30,
) -> Route:
    """The fastest exact route that fits into memory, or a sketch if none does, for data that can be read again.

    Parameters
    ----------
    samples : int or None
        Number of samples of the data set; None when it is not known.
    widths_x, widths_y : sequence of int
        Widths of the layers of both networks. Without ``widths_y`` every two layers of the first are compared.
    kernel : Kernel, optional
        Linear when left out. Moments need the linear kernel; a sketch needs the linear or the RBF kernel.
    estimator : "unbiased" or "biased"
        The sketch has the unbiased one only.
    memory : int
        Limit in bytes.

    Returns
    -------
    Route
        With its memory and an estimate of its time without the forward passes.

    Raises
    ------
    ValueError
        If nothing fits into memory.

    References
    ----------
    docs/theory.md, section 2: for l layers with a total width of D, moments take n D^2 multiply-adds and D^2 numbers,
    Gram matrices n^2 D + n^2 l^2 / 2 multiply-adds and n^2 l / 2 numbers.

    Examples
    --------
    >>> choose_route(100_000, [64, 128]).name
    'moments'
    >>> choose_route(1_000, [100_352, 200_704]).name
    'grams'
    """
    return best_route(plan_routes(DataSize(samples, widths_x, widths_y), memory, kernel=kernel, estimator=estimator))


def best_route(routes: Sequence[Route], asked: str | None = None) -> Route:
    """The route that is asked for; else the fastest exact route that fits, or the sketch if none does.

    Raises
    ------
    ValueError
        If it does not fit; the message says why each does not, and what to do.
    """
    if asked is not None:
        route = next(route for route in routes if route.name == asked)
        if not route.fits:
            raise ValueError(f"route={asked!r} cannot be taken: {route.reason}. {ADVICE}")
        return route
    exact = [route for route in routes if route.fits and route.name != "sketch"]
    if exact:
        # Blocks give no errors, so they must be far faster, and by more than a moment.
        return min(exact, key=lambda route: 2 * route.seconds + 0.1 if route.name == "blocks" else route.seconds)
    sketch = next(route for route in routes if route.name == "sketch")
    if sketch.fits:
        return sketch
    why = "; ".join(f"{route.name}: {route.reason}" for route in routes)
    raise ValueError(f"No route over the whole data set fits into the memory. {why}. {ADVICE}")


ADVICE = (
    'Give more memory (memory="8GiB"), fewer layers or samples, a pooling that narrows the features (pooling="mean"), '
    'or scope="minibatch".'
)


def plan_routes(
    data: DataSize,
    memory: int,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    rates: Rates | None = None,
) -> list[Route]:
    """Every route with its memory and time, whether it fits or not.

    Parameters
    ----------
    data : DataSize
        Samples and widths.
    memory : int
        Limit in bytes.
    kernel : Kernel, optional
        Linear when left out.
    estimator : "unbiased" or "biased"
        The sketch has the unbiased one only.
    rates : Rates, optional
        Of the machine; typical ones when left out.

    Returns
    -------
    list of Route
        In the order of ``ROUTES``.

    Examples
    --------
    >>> [route.name for route in plan_routes(DataSize(1_000, [64, 128]), 2**30) if route.fits]
    ['moments', 'grams', 'blocks', 'sketch']
    """
    plan = _Plan(data, memory, given_kernel(kernel), estimator, rates or Rates())
    return [plan.moments(), plan.grams(), plan.disk(), plan.blocks(), plan.sketch()]


class _Plan:
    def __init__(self, data: DataSize, memory: int, kernel: Kernel, estimator: str, rates: Rates) -> None:
        if data.samples is not None and data.samples < 1:  # a loader whose length is wrong
            data = replace(data, samples=None)
        self.data, self.memory, self.kernel, self.estimator, self.rates = data, memory, kernel, estimator, rates
        self.total = sum(data.widths)
        self.layers = len(data.widths)
        self.linear = isinstance(kernel, Linear)
        self.samples = data.samples or 0
        self.small = data.samples is not None and data.samples <= WIDE
        self.sent = 0 if data.processes == 1 else 2 * data.itemsize * (data.samples or 0) * max(data.widths)
        """Bytes of the features of one layer that come from all processes, and of what they send."""

    def _over(self, name: str, needed: float, what: str) -> Route | None:
        """A route that does not fit, if ``needed`` bytes are too many."""
        if needed <= self.memory:
            return None
        return Route(name, f"{what}: {_text(needed)}, above {_text(self.memory)}", fits=False, memory=int(needed))

    def moments(self) -> Route:
        if not self.linear:
            return Route("moments", "the kernel is not linear", fits=False)
        data = self.data
        split = None if data.widths_y is None else len(data.widths_x)
        pairs = Layout(tuple(data.widths), split).pairs if self.total <= 10**6 else self.total**2 // 2
        needed = sums_bytes(self.total, pairs) + self.total * (12 * 512 + 24 * self.layers)
        needed += data.beside + (0 if data.held else data.itemsize * data.batch * self.total)
        if (over := self._over("moments", needed, f"a total width of {self.total}")) is not None:
            return over
        rate = self.rates.wide_products if self.total <= NARROW else self.rates.products
        seconds = self.rates.forward + self.samples * (pairs / rate + 8 * self.total * 6 / self.rates.memory)
        seconds += PRODUCT * pairs / self.rates.memory
        reason = f"sums of a total width of {self.total} take {_text(8 * pairs)} for any number of samples"
        return Route("moments", reason, memory=int(needed), seconds=seconds)

    def _kept_grams(self) -> int:
        return stack_bytes(self.layers, self.samples, self.estimator)

    def _gram_seconds(self) -> float:
        n = self.samples
        rate = self.rates.wide_products if self.small or not self.linear else self.rates.products
        touched = (24 if self.small else 12) * n * self.total + ENTRY * n * n * self.layers
        cubes = min(n, 1024) ** 3 * self.layers / self.rates.wide_products
        errors = n * n * self.layers**2 / self.rates.wide_products
        pairs = n * n * self.layers**2 / 2 / self.rates.products
        of_layers = n * n * self.total / rate + touched / self.rates.memory + cubes
        return of_layers / self.data.processes + pairs + errors

    def grams(self) -> Route:
        data, n = self.data, self.samples
        if data.samples is None:
            return Route("grams", "the number of samples is not known", fits=False)
        widest = max(data.widths)
        kept = self._kept_grams()
        fixed = kept + part_bytes(n, widest, self.kernel) + data.beside + self.sent
        if (over := self._over("grams", fixed, f"{self.layers} Gram matrices of {n} samples")) is not None:
            return over
        if data.held or data.batches == 1:
            groups: tuple[tuple[Slice, ...], ...] = (tuple(Slice(i, 0, w) for i, w in enumerate(data.widths)),)
        else:
            room = int(PART * (self.memory - fixed))
            groups = _packed(data.widths, room // (data.itemsize * max(1, data.own)), divisible=self.linear)
        if not groups or len(groups) > MOST_PASSES:
            return Route("grams", f"the widest layer, {_text(data.itemsize * n * widest)}, does not fit", fits=False)
        passes = len(groups)
        if passes > 1 and not data.again:
            return Route("grams", f"{passes} passes are needed, but the data can be read only once", fits=False)
        most = max(sum(part.stop - part.start for part in group) for group in groups)
        features = 0 if data.held or data.batches == 1 else data.itemsize * data.own * most
        reason = f"{self.layers} Gram matrices of {n} samples take {_text(kept)}"
        if features:
            reason += f", and the features {_text(features)}"
        if passes > 1:
            reason += f" in each of {passes} passes over the data, of {_text(data.features or 0)} in all"
        seconds = passes * self.rates.forward + self._gram_seconds()
        return Route("grams", reason, memory=fixed + features, seconds=seconds, passes=passes, groups=groups)

    def disk(self) -> Route:
        data, n = self.data, self.samples
        if data.held:
            return Route("disk", "the features are in memory already", fits=False)
        if data.features is not None and data.features > data.disk:
            where = f"the features take {_text(data.features)}, and the folder of temporary files"
            return Route("disk", f"{where} has room for {_text(data.disk)}", fits=False, disk=data.features)
        if not data.disk:
            return Route("disk", "the folder of temporary files has no room", fits=False)
        fixed = self._kept_grams() + part_bytes(max(n, data.batch), max(data.widths), self.kernel) + data.beside
        fixed += self.sent
        if (over := self._over("disk", fixed, f"{self.layers} Gram matrices of {n} samples")) is not None:
            return over
        room = int(PART * (self.memory - fixed))
        if data.features is None:
            why = "the number of samples is not known: features are kept in memory, and on the disk beyond it"
            return Route("disk", why, memory=fixed + room, disk=data.disk, seconds=math.inf, room=room)
        own = data.itemsize * data.own * self.total
        written = max(0, own - room)
        seconds = self.rates.forward + self._gram_seconds() + 2 * written / self.rates.disk
        reason = f"features of {_text(data.features)} in one pass, of which {_text(written)} go to the disk"
        return Route("disk", reason, memory=fixed + min(room, own), disk=written, seconds=seconds, room=room)

    def blocks(self) -> Route:
        data, n = self.data, self.samples
        if data.samples is None or data.features is None:
            return Route("blocks", "the number of samples is not known", fits=False)
        block = min(n, 512)
        wide = 1 if self.linear else 3
        needed = (2 if data.held else 3) * data.features + 3 * 8 * block**2 * self.layers
        needed += self.sent
        needed += (2 * 8 * wide * block + (8 * n if self.linear else 0)) * max(data.widths) + data.beside
        if (over := self._over("blocks", needed, "the features and their centred copies")) is not None:
            return over
        rate = self.rates.products if self.linear else self.rates.wide_products / 3
        seconds = self.rates.forward + n * n * (self.total / 2 + self.layers**2 / 2) / rate / data.processes
        seconds += 24 * n * self.total / self.rates.memory + 100 * n * n * self.layers / self.rates.memory
        reason = f"the features take {_text(data.features)}; Gram matrices are made block by block"
        return Route("blocks", reason, memory=needed, seconds=seconds)

    def sketch(self) -> Route:
        if not isinstance(self.kernel, Linear | RBF):
            return Route("sketch", f"{self.kernel!r} has no sketch", fits=False)
        if self.estimator != "unbiased":
            why = 'the sketch has the unbiased estimator only; use estimator="unbiased"'
            return Route("sketch", why, fits=False)
        data = self.data
        size = SKETCH_SIZE
        while True:
            columns = size * self.layers * (1 if self.linear else 2)
            needed = size * self.total * (1 if self.linear else 4) + sums_bytes(columns, columns**2 // 2)
            needed += data.beside + 8 * size * max(data.widths)
            needed += 0 if data.held else 2 * data.itemsize * data.batch * self.total
            if needed <= self.memory or size <= LEAST_SKETCH:
                break
            size //= 2
        if (over := self._over("sketch", needed, f"{size} projections of each layer")) is not None:
            return over
        work = self.samples * (self.total * size / self.rates.products + columns**2 / 2 / self.rates.products)
        reason = f"an estimate from {size} random projections of each layer"
        return Route("sketch", reason, memory=needed, seconds=self.rates.forward + 2 * work, size=size)


def _packed(widths: Sequence[int], columns: int, *, divisible: bool) -> tuple[tuple[Slice, ...], ...]:
    """Slices of the layers in groups of at most ``columns`` columns, in their order; empty if that cannot be done.

    A layer is cut only if it is wider than a group.
    """
    groups: list[list[Slice]] = [[]]
    left = columns
    for place, width in enumerate(widths):
        if width > columns and (not divisible or columns < LEAST_COLUMNS):
            return ()
        start = 0
        while start < width:
            if left < min(width - start, columns):
                groups.append([])
                left = columns
            stop = min(width, start + left)
            groups[-1].append(Slice(place, start, stop))
            left -= stop - start
            start = stop
    return tuple(tuple(group) for group in groups if group)


def sums_bytes(columns: int, pairs: int) -> int:
    """Bytes of the sums of moments of so many columns, and of the work on some samples, or on a strip at the end."""
    rows = max(64, min(ROWS, NUMBERS // columns))
    return 8 * pairs + columns * max(48 * rows, 40 * min(STRIP, columns))


def _text(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
