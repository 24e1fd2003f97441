"""Interruptions inside a batch: it is in the sums, the count, the notes and the digest, or in none of them."""

import signal

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.estimators.minibatch import MinibatchCKA

NUMBERS = ("values", "standard_error", "p_value", "chance")


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


def batches():
    """Later ones have a mean far above their spread, so that some layers are prepared in another way."""
    found = list(torch.randn(9, 20, 6, generator=torch.Generator().manual_seed(1)))
    for batch in found[3:]:
        batch += 15
    return found


def same(found, expected):
    for name in NUMBERS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or a.tobytes() == b.tobytes(), name
    assert (found.notes, found.meta) == (expected.notes, expected.meta)


class Interruption:
    """Raises KeyboardInterrupt in a certain call."""

    def __init__(self, at):
        self.at = at
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt


def interrupt_inside(place, at, nets, monkeypatch):
    stop = Interruption(at)
    if place in ("forward", "hook"):
        module = nets[1][2]
        register = module.register_forward_pre_hook if place == "forward" else module.register_forward_hook
        register(stop)
        return
    owner, name, before = {
        "gram": (GramKeeper, "__call__", False),
        "observe": (GramKeeper, "observe", False),
        "before the sums": (MinibatchCKA, "update_rows", True),
        "after the sums": (MinibatchCKA, "update_rows", False),
        "save": (minibatch.MinibatchPass, "read_keepers", False),
    }[place]
    original = getattr(owner, name)

    def interrupted(*args):
        if before:
            stop()
        result = original(*args)
        if not before:
            stop()
        return result

    monkeypatch.setattr(owner, name, interrupted)


PLACES = ("forward", "hook", "gram", "observe", "before the sums", "after the sums", "save")


@pytest.mark.parametrize("at", [3, 7, 8])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_batch_is_in_nothing(tmp_path, monkeypatch, place, at):
    path = tmp_path / "run.npz"
    monkeypatch.setattr(minibatch, "CHECKPOINT_EVERY", 1)
    nets = network(0), network(1)
    with monkeypatch.context() as patch:
        interrupt_inside(place, at, nets, patch)
        partial = None
        try:
            partial = cp.compare(*nets, batches(), checkpoint=path, progress=False)
        except KeyboardInterrupt:  # in the first batch
            assert not path.exists()
    if partial is not None:
        done = partial.meta["batches"]
        assert partial.meta["partial"]
        assert done < 9
        expected = cp.compare(network(0), network(1), batches()[:done], progress=False)
        assert partial.values.tobytes() == expected.values.tobytes()
        assert [note for note in partial.notes if not note.startswith("stopped by")] == list(expected.notes)
    found = cp.compare(network(0), network(1), batches(), checkpoint=path, progress=False)
    same(found, cp.compare(network(0), network(1), batches(), progress=False))


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs raise_signal")
def test_a_signal_waits_for_the_end_of_the_batch_and_a_second_one_does_not(tmp_path):
    seen = []

    def pressing(times):
        def forward(model, batch):
            seen.append(1)
            if len(seen) == 7:  # the second network in batch 3
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return model(batch)

        return forward

    path = tmp_path / "run.npz"
    nets = network(0), network(1)
    for times, done in ((1, 4), (2, 3)):
        seen.clear()
        found = cp.compare(*nets, batches(), forward=pressing(times), progress=False)
        assert (found.meta["batches"], found.meta["partial"]) == (done, True)
        expected = cp.compare(*nets, batches()[:done], progress=False)
        assert found.values.tobytes() == expected.values.tobytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not path.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
def test_a_handler_of_ones_own_is_called_between_batches(tmp_path):
    """As on a cluster that sends SIGTERM before it ends a job."""
    path, seen = tmp_path / "run.npz", []

    def leave(_number, _frame):
        raise SystemExit("the time is up")

    def forward(model, batch):
        seen.append(1)
        if len(seen) == 9:
            signal.raise_signal(signal.SIGTERM)
            seen.append("the batch went on")
        return model(batch)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match="the time is up"):
            cp.compare(network(0), network(1), batches(), forward=forward, checkpoint=path, progress=False)
        assert "the batch went on" in seen
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)
