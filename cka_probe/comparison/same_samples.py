"""Several passes over one data set: the same samples in the same order each time, or an error."""

from __future__ import annotations

from typing import Any

import torch

from ..capture.streaming import Pass

__all__ = ["OtherSamplesError", "OwnGenerators", "SameSamples"]


class OtherSamplesError(Exception):
    """A later pass over the data gave other samples than the first one."""


class SameSamples:
    """The digests of the batches of the first pass, which those of later passes must equal.

    Attributes
    ----------
    digests : list of str
        After each batch of the first pass.
    """

    def __init__(self) -> None:
        self.digests: list[str] = []
        self._place = 0
        self._is_first = True

    def see(self, run: Pass) -> None:
        """Compare the batches so far, after each batch. Raise OtherSamplesError if they are others."""
        if run.order is None:
            return
        digest = run.order.hexdigest()
        if self._is_first:
            self.digests.append(digest)
        elif self._place >= len(self.digests) or self.digests[self._place] != digest:
            raise OtherSamplesError
        self._place += 1

    def end_pass(self) -> None:
        """End a pass. Raise OtherSamplesError if a later one was shorter than the first."""
        if not self._is_first and self._place < len(self.digests):
            raise OtherSamplesError
        self._is_first, self._place = False, 0

    def go_on(self, place: int, *, is_first: bool) -> None:
        """Go on with restored digests after ``place`` batches of the first pass or a later one."""
        self._place, self._is_first = place, is_first

    def restart(self) -> None:
        """Forget what was seen: the pass begins again."""
        if self._is_first:
            self.digests = []
        self._place = 0


class OwnGenerators:
    """The random generators of data loaders, which begin each pass in the same state.

    The generators of torch, numpy and Python are set back after each pass by ``borrowed``.

    Parameters
    ----------
    *loaders : any
        What is read: loaders, or anything else.
    """

    def __init__(self, *loaders: Any) -> None:
        found: dict[int, torch.Generator] = {}
        for loader in loaders:
            for part in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
                for one in (part, getattr(part, "sampler", None)):
                    generator = getattr(one, "generator", None)
                    if isinstance(generator, torch.Generator):
                        found[id(generator)] = generator
        self._states = [(generator, generator.get_state()) for generator in found.values()]

    def begin(self) -> None:
        """Set all generators to their states before the first pass."""
        for generator, state in self._states:
            generator.set_state(state)
