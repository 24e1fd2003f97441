"""SideStream on two stand-in streams: late reads, changes in place, references, and no waiting of the host."""

import weakref

import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

import cka_probe as cp
from cka_probe.capture.trees import tensors
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.comparison.grams.side_stream import LAG, CudaStreams, SideStream


class LateEvent:
    """An event that the host can query but not wait for."""

    def __init__(self, streams):
        self.streams, self.done, self.asked = streams, False, 0

    def query(self):
        self.asked += 1
        if self.asked > self.streams.patience:
            self.streams.carry_out(self)
        return self.done


class MainStream:
    """The stream of the forward. It runs everything at once, so waiting for an event means doing its work now."""

    def __init__(self, streams):
        self.streams, self.waits = streams, 0

    def wait_event(self, event):
        self.waits += 1
        self.streams.carry_out(event)


class LateStreams:
    """A side stream that reads its input as late as possible; its results are NaN until then.

    ``patience`` is the number of queries until an event is done; None means that it is done only by a wait.
    """

    def __init__(self, patience=None):
        self.patience = float("inf") if patience is None else patience
        self.main = MainStream(self)
        self.pending = []
        self.launched = 0

    def current(self):
        return self.main

    def launch(self, work):
        self.launched += 1
        result, event = work(), LateEvent(self)
        for tensor in tensors(result):
            tensor.fill_(torch.nan)
        self.pending.append((event, work, result))
        if self.patience == 0:
            self.carry_out(event)
        return result, event

    def carry_out(self, event):
        """Do all work up to this event, in order."""
        while self.pending and not event.done:
            done, work, result = self.pending.pop(0)
            with torch.autocast("cpu", enabled=False):  # a GPU does the work as it was launched
                again = work()
            for out, late in zip(tensors(result), tensors(again), strict=True):
                out.copy_(late)
            done.done = True


def begun(streams, **options):
    side = SideStream(streams, **options)
    assert side.end_forward()
    return side


class TestSideStream:
    def test_starts_after_the_first_forward(self):
        side = SideStream(LateStreams())
        assert not side.takes("a", torch.ones(2, 2))
        assert side.end_forward()
        assert side.takes("a", torch.ones(2, 2))

    def test_does_not_take_tensors_without_a_version(self):
        side = begun(LateStreams())
        with torch.inference_mode():
            assert not side.takes("a", torch.ones(2, 2))

    def test_does_not_take_tensors_of_another_stream(self):
        streams = LateStreams()
        side = begun(streams)
        streams.main = MainStream(streams)
        assert not side.takes("a", torch.ones(2, 2))
        assert side.end_forward()
        assert side.takes("a", torch.ones(2, 2))

    def test_both_streams_wait_if_the_forward_ends_on_another(self):
        streams = LateStreams()
        side, first = begun(streams), streams.main
        side.run("a", torch.ones(2, 2), lambda: torch.ones(1))
        streams.main = MainStream(streams)
        assert side.end_forward()
        assert (first.waits, streams.main.waits) == (1, 1)

    def test_results_are_complete_after_end_forward(self):
        side, x = begun(LateStreams()), torch.ones(2, 2)
        found = side.run("a", x, lambda: x @ x)
        assert found.isnan().all()
        assert side.end_forward()
        assert_array_equal(found, torch.full((2, 2), 2.0))

    @pytest.mark.parametrize("view", [lambda x: x, lambda x: x.flatten(1), lambda x: x.transpose(0, 1)])
    @pytest.mark.parametrize("when", ["at the end", "at the next layer"])
    def test_a_change_before_the_read_is_over_is_doubtful(self, view, when):
        side, x = begun(LateStreams(), lag=1 if when == "at the next layer" else LAG), torch.ones(2, 3, 4)
        features = view(x)
        side.run("a", features, features.sum)
        x.relu_()
        assert side.takes("b", x)
        assert side.changed_in_place == ({"a"} if when == "at the next layer" else set())
        assert not side.end_forward()
        assert side.changed_in_place == {"a"}
        assert side.end_forward()
        assert not side.takes("a", features)
        assert side.takes("b", features)

    def test_a_change_before_the_read_is_seen_to_be_over_is_doubtful(self):
        side, x = begun(LateStreams(patience=0)), torch.ones(2, 2)
        side.run("a", x, x.sum)
        x.add_(1)
        assert not side.end_forward()

    def test_a_change_after_the_read_was_seen_to_be_over_is_harmless(self):
        side, x = begun(LateStreams(patience=0)), torch.ones(2, 2)
        side.run("a", x, x.sum)
        assert side.takes("b", x)
        x.add_(1)
        assert side.end_forward()
        assert side.changed_in_place == set()

    def test_a_change_after_the_end_of_the_forward_is_harmless(self):
        side, x = begun(LateStreams()), torch.ones(2, 2)
        found = side.run("a", x, x.sum)
        assert side.end_forward()
        x.add_(1)
        assert side.end_forward()
        assert (float(found), side.changed_in_place) == (4.0, set())

    def test_a_change_of_the_original_of_a_copy_is_harmless(self):
        side, x = begun(LateStreams()), torch.ones(2, 2)
        copy = x + 0
        side.run("a", copy, copy.sum)
        x.add_(1)
        assert side.end_forward()

    def test_releases_tensors_that_were_read(self):
        streams = LateStreams(patience=1)
        side, x = begun(streams), torch.ones(2, 2)
        alive = weakref.ref(x)
        side.run("a", x, x.sum)
        del x
        side.takes("b", torch.ones(1))
        assert alive() is not None
        side.takes("b", torch.ones(1))
        assert alive() is None
        assert streams.main.waits == 0

    def test_the_forward_waits_when_too_many_reads_are_outstanding(self):
        streams, alive = LateStreams(), []
        side = begun(streams)
        for layer in range(3 * LAG):
            x = torch.ones(2, 2)
            alive.append(weakref.ref(x))
            assert side.takes(str(layer), x)
            side.run(str(layer), x, x.sum)
            del x
            assert sum(ref() is not None for ref in alive) <= LAG
        assert streams.main.waits == 2 * LAG
        assert side.end_forward()
        assert not any(ref() is not None for ref in alive)

    def test_a_change_after_the_forward_has_waited_is_harmless(self):
        side, x = begun(LateStreams(), lag=1), torch.ones(2, 2)
        found = side.run("a", x, x.sum)
        assert side.takes("b", x)
        x.add_(1)
        assert side.end_forward()
        assert float(found) == 4.0


class Block(nn.Module):
    """Changes the outputs of both convolutions in place."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.conv2(self.relu(self.conv1(x)))
        out += x
        return self.relu(out)


class Counted(nn.Sequential):
    passes = 0

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


def residual(offset=0.0):
    torch.manual_seed(0)
    net = Counted(nn.Conv2d(3, 4, 1), Block(4), Block(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    with torch.no_grad():
        net[1].conv1.bias += offset
    return net


def tidy():
    torch.manual_seed(1)
    return Counted(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 5))


def images(count=5, n=20):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 3, 6, 6, generator=generator) for _ in range(count)]


@pytest.fixture
def beside(monkeypatch):
    """compare as on a GPU, with a side stream of the given patience; "no" means without a side stream."""

    def compare(patience, *nets, **options):
        made = []

        def streams(_device):
            made.append(LateStreams(patience))
            return made[-1]

        def keeper(*args, **kw):
            return GramKeeper(*args, **{**kw, "overlap": patience != "no"}, deferred=True, streams=streams)

        monkeypatch.setattr(minibatch, "GramKeeper", keeper)
        result = cp.compare(*nets, images(), progress=False, **options)
        return result, sum(one.launched for one in made)

    return compare


PATIENCE = pytest.mark.parametrize("patience", [None, 0, 1, 3])


@PATIENCE
@pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF()], ids=["linear", "rbf"])
@pytest.mark.parametrize("offset", [0.0, 40.0], ids=["raw", "shifted"])
def test_compare_equals_compare_on_one_stream(beside, patience, kernel, offset):
    expected, _ = beside("no", residual(offset), tidy(), kernel=kernel)
    found, launched = beside(patience, residual(offset), tidy(), kernel=kernel)
    assert launched > 4 * len(tidy())
    assert_array_equal(found.values, expected.values)
    assert_array_equal(found.standard_error, expected.standard_error)
    assert found.notes == expected.notes


def test_only_the_first_changed_minibatch_runs_twice(beside):
    net, other = residual(), tidy()
    beside(None, net, other)
    assert (net.passes, other.passes) == (5 + 1, 5)


def test_half_precision_and_pooled_features(beside):
    for options in ({"pooling": "mean"}, {"autocast": torch.bfloat16}):
        expected, _ = beside("no", residual(), tidy(), **options)
        found, launched = beside(None, residual(), tidy(), **options)
        assert launched
        assert_array_equal(found.values, expected.values)


def test_without_checking_reads_the_values_are_wrong(beside, monkeypatch):
    """Negative control of the tests above."""
    expected, _ = beside("no", residual(), tidy())
    monkeypatch.setattr(SideStream, "_check", lambda *_: None)
    found, _ = beside(None, residual(), tidy())
    assert abs(found.values - expected.values).max() > 1e-2


def test_results_that_are_used_before_end_forward_are_nan(beside, monkeypatch):
    monkeypatch.setattr(SideStream, "end_forward", lambda self: setattr(self, "_home", self._streams.current()) or True)
    with pytest.raises(cp.CaptureError, match="gave NaN"):
        beside(None, residual(), tidy())


def test_the_error_for_nan_names_layer_and_batch(beside, monkeypatch):
    data = images()
    data[3][2, 0] = torch.nan
    monkeypatch.setitem(globals(), "images", lambda: data)
    for kernel in (cp.Linear(), cp.RBF()):
        with pytest.raises(cp.CaptureError, match=r"Layer '0' of model_x .* in batch 3"):
            beside(None, residual(), tidy(), kernel=kernel)


def test_without_a_reviewing_recorder_the_side_stream_is_not_used():
    streams = LateStreams()
    keeper = GramKeeper(cp.Linear(), overlap=True, deferred=True, streams=lambda _: streams)
    for _ in range(3):
        assert keeper("fc", torch.ones(20, 5)).gram.isfinite().all()
    assert streams.launched == 0


class TestErrors:
    @pytest.mark.parametrize("call", ["compare", "compare_many"])
    def test_on_the_cpu(self, call):
        nets = (tidy(), tidy()) if call == "compare" else ({"a": tidy()},)
        with pytest.raises(ValueError, match=r"overlap=True is for an NVIDIA GPU, but Counted is on cpu"):
            getattr(cp, call)(*nets, images(), overlap=True, progress=False)

    def test_in_the_dataset_scope(self):
        with pytest.raises(ValueError, match=r'`backend`, `tf32` and `overlap` are for scope="minibatch"'):
            cp.compare(tidy(), tidy(), images(), overlap=True, scope="dataset", progress=False)

    def test_by_the_keeper(self):
        with pytest.raises(ValueError, match=r"overlap=True is for an NVIDIA GPU, but the features are on cpu"):
            GramKeeper(cp.Linear(), overlap=True)("fc", torch.ones(20, 2))
        with pytest.raises(ValueError, match="is for an NVIDIA GPU"):
            CudaStreams(torch.device("cpu"))
