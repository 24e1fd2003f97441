"""Gram matrices by CuPy, with a stand-in for CuPy whose arrays are those of numpy; tests/gpu has the real one."""

import contextlib
import sys
from types import ModuleType

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams import cuda
from cka_probe.comparison.grams.keeper import GramKeeper


@pytest.fixture
def used(monkeypatch):
    """Shapes of the features that went through CuPy."""
    shapes = []

    def as_numpy(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor.detach().numpy()

    module = ModuleType("cupy")
    module.ndarray = type("ndarray", (), {})  # array-api-compat asks whether arrays are of this class; none is
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cuda, "on_torchs_stream", lambda _device: contextlib.nullcontext(module))
    monkeypatch.setattr(cuda, "as_cupy", as_numpy)
    return shapes


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF(), cp.RBF(bandwidth=3.0), cp.Cosine()], ids=repr)
def test_compare_by_cupy_equals_compare_by_torch(used, monkeypatch, kernel, estimator):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2)]
    with torch.no_grad():
        nets[0][2].bias += 5.0
    data = list(torch.randn(4, 20, 6))
    expected = cp.compare(*nets, data, kernel=kernel, estimator=estimator, progress=False)
    assert not used

    def keeper(*args, **kw):
        return GramKeeper(*args, **{**kw, "backend": "cupy"}, deferred=True)

    monkeypatch.setattr(minibatch, "GramKeeper", keeper)
    found = cp.compare(*nets, data, kernel=kernel, estimator=estimator, progress=False)
    assert_allclose(found.values, expected.values, atol=1e-5)
    assert set(used) == {(20, 8), (20, 3)}


class Streams(ModuleType):
    """CuPy as far as its streams: with ``from_external`` in version 14, and with ``ExternalStream`` before."""

    def __init__(self, version):
        super().__init__("cupy")
        self.entered = []
        stand_in = self

        class Stream:
            def __init__(self, pointer):
                self.pointer = pointer

            def __enter__(self):
                stand_in.entered.append(self.pointer)

            def __exit__(self, *_):
                pass

        self.cuda = ModuleType("cuda")
        self.cuda.Device = lambda _index: contextlib.nullcontext()
        self.cuda.Stream = type("Stream", (), {})
        if version >= 14:
            self.cuda.Stream.from_external = staticmethod(lambda stream: Stream(stream.__cuda_stream__()[1]))
        else:
            self.cuda.ExternalStream = Stream


@pytest.mark.parametrize("version", [13, 14])
def test_cupy_runs_on_the_stream_of_torch(monkeypatch, version):
    cupy = Streams(version)
    monkeypatch.setattr(cuda, "require_cupy", lambda: cupy)
    stream = type("Stream", (), {"cuda_stream": 1234, "device": torch.device("cuda", 0)})()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    with cuda.on_torchs_stream(torch.device("cuda")) as found:
        assert found is cupy
    assert cupy.entered == [1234]
