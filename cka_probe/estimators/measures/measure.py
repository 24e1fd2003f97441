"""What a measure is: a function of two layers with its kind, range and invariances, and its matrix over all pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple

import numpy as np

from ...capture.nearest import nearest
from ..validation import Array, check_pair
from .pairing import Pair, all_pairs, prepare_layers

__all__ = ["Measure", "MeasureMatrix"]

MOST_SAMPLES = 2000
"""Options are not tried before the data are read if they need more samples than this."""


class MeasureMatrix(NamedTuple):
    """Values of a measure for all pairs of layers (layers_x, layers_y), and their chance levels where known."""

    values: Array
    chance: Array | None


@dataclass(frozen=True)
class Measure:
    """A similarity or distance of two layers.

    Attributes
    ----------
    function : callable
        ``function(x, y, **options)`` takes features (n, p) and (n, q) of the same samples and returns a 0-d array of
        float64.
    prepare : callable
        ``prepare(x, **options)`` computes the statistics of one layer from checked features.
    pair : callable
        ``pair(a, b)`` computes the value from the statistics of two layers.
    kind : "similarity" or "distance"
        The more alike two layers are, the larger is a similarity and the smaller a distance.
    limits : tuple of float
        Smallest and largest possible value.
    invariances : str
        Changes of the features that leave the value unchanged.
    symmetric : bool
        Whether ``function(x, y) == function(y, x)``.
    minimum : int
        Smallest number of samples.
    chance_pair : callable, optional
        ``chance_pair(a, b)`` computes the chance level from the statistics of two layers.
    """

    function: Callable[..., Array]
    prepare: Callable[..., Any]
    pair: Pair
    kind: Literal["similarity", "distance"]
    limits: tuple[float, float]
    invariances: str
    symmetric: bool = True
    minimum: int = 2
    chance_pair: Pair | None = None

    @property
    def chance(self) -> Callable[..., Array] | None:
        """``chance(x, y, **options)`` gives the exact mean over permutations of the samples; None if not known."""
        if self.chance_pair is None:
            return None
        return partial(_chance, self)

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``function`` with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check_options(self, options: Iterable[str]) -> None:
        """Raise TypeError if ``function`` does not have one of the options; the message gives the nearest."""
        known = self.options
        for option in options:
            if option not in known:
                near = nearest(option, known, most=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                listed = f" Its options are: {', '.join(known)}." if known else " It has no options."
                raise TypeError(f"`{self.function.__name__}` has no option `{option}`.{hint}{listed}")

    def try_options(self, options: dict[str, Any]) -> None:
        """Raise the error that an option gives for any number of samples, or a library that is not installed."""
        every = {**self.options, **options}
        counts = [int(value) for name, value in every.items() if isinstance(value, Integral) and name != "seed"]
        n = 12 + 3 * max(counts, default=0)
        if n <= MOST_SAMPLES:
            self.prepare(np.random.default_rng(0).normal(size=(n, 3)), **options)

    def matrix(self, xs: Sequence[Array], ys: Sequence[Array] | None = None, **options: Any) -> MeasureMatrix:
        """Values of the measure for every pair of layers; the statistics of each layer are computed once.

        Parameters
        ----------
        xs : sequence of arrays (n, p_i)
            Features of the layers of one network.
        ys : sequence of arrays (n, q_j), optional
            Features of the layers of the other network; ``xs`` when left out.
        **options
            Options of ``function``.

        Returns
        -------
        MeasureMatrix
            Arrays (len(xs), len(ys)) of float64. NaN in the rows and columns of constant layers.

        Raises
        ------
        TypeError, ValueError
            As ``function``; the message names the layer by its place. Also for an unknown option.
        """
        self.check_options(options)
        left, right = prepare_layers(xs, ys, partial(self.prepare, **options), minimum=self.minimum)
        values = all_pairs(left, right, self.pair, symmetric=self.symmetric)
        if self.chance_pair is None:
            return MeasureMatrix(values, None)
        return MeasureMatrix(values, all_pairs(left, right, self.chance_pair, symmetric=self.symmetric))


def _chance(measure: Measure, x: Array, y: Array, **options: Any) -> Array:
    _, x, y = check_pair(x, y, minimum=measure.minimum)
    assert measure.chance_pair is not None
    return measure.chance_pair(measure.prepare(x, **options), measure.prepare(y, **options))
