"""extract and its buffers on a GPU."""

import torch
from gpu_networks import convolutional, images
from numpy.testing import assert_allclose

import cka_probe as cp
from cka_probe.capture.buffers import Budget, FeatureBuffer, as_cupy


def test_features_stay_on_the_gpu():
    features = cp.extract(convolutional(), images(), progress=False)
    assert all(x.is_cuda and len(x) == 256 for x in features.values())


def test_cupy_shares_the_memory(cupy):
    x = torch.randn(4, 3, device="cuda")
    shared = as_cupy(x)
    assert isinstance(shared, cupy.ndarray)
    assert shared.data.ptr == x.data_ptr()
    x[0, 0] = 7.0
    assert float(shared[0, 0]) == 7.0


def test_extract_as_cupy_equals_torch(cupy):
    as_torch = cp.extract(convolutional(), images(), progress=False)
    found = cp.extract(convolutional(), images(), backend="cupy", progress=False)
    for name, x in as_torch.items():
        assert isinstance(found[name], cupy.ndarray)
        assert_allclose(found[name].get(), x.cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_spills_to_page_locked_host_memory():
    buffer = FeatureBuffer(budget=Budget(10_000))
    parts = [torch.randn(10, 64, device="cuda") for _ in range(8)]
    for part in parts:
        buffer.append(part)
    torch.cuda.synchronize()
    assert buffer.place == "host"
    assert buffer.rows().is_pinned()
    assert torch.equal(buffer.rows(), torch.cat(parts).cpu())


def test_spills_to_a_file(tmp_path):
    everything = cp.extract(convolutional(), images(), progress=False)
    some = cp.extract(convolutional(), images(), budget=2_000_000, folder=tmp_path, progress=False)
    places = {name: x.is_cuda for name, x in some.items()}
    assert True in places.values()
    assert False in places.values()
    assert len(some.notes) == sum(not on_gpu for on_gpu in places.values())
    for name, x in everything.items():
        assert_allclose(some[name].cpu().numpy(), x.cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_appending_does_not_wait(no_waiting):
    part = torch.randn(16, 32, device="cuda")
    buffer = FeatureBuffer(rows=64)
    buffer.append(part)
    with no_waiting:
        buffer.append(part)
        buffer.append(part)
    assert torch.equal(buffer.rows(), part.repeat(3, 1))


def test_page_locked_memory_that_the_loader_fills_again_is_read_in_time():
    """The second copy waits behind a busy GPU while the loader already writes the third batch."""

    class Slow(torch.nn.Linear):
        def forward(self, x):
            torch.cuda._sleep(200_000_000)
            return super().forward(x)

    torch.manual_seed(0)
    net = Slow(4096, 8).cuda()
    batches = [torch.randn(512, 4096) for _ in range(4)]

    def ring():
        buffer = torch.empty(512, 4096, pin_memory=True)
        for batch in batches:
            buffer.copy_(batch)
            yield buffer
            buffer.zero_()

    features = cp.extract(net, ring(), "", progress=False)
    with torch.no_grad():
        expected = torch.cat([torch.nn.functional.linear(batch, net.weight.cpu(), net.bias.cpu()) for batch in batches])
    torch.testing.assert_close(features["model"].cpu(), expected, rtol=1e-4, atol=1e-3)
