"""overlap=True gives the values of one stream, also when the side stream is late, and the host never waits."""

import pytest
import torch
import torchvision
from gpu_networks import convolutional, full_precision_convolutions, images
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.comparison.grams.side_stream import CudaStreams, SideStream


def resnet():
    """A network with every ReLU and every sum in place."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).cuda()


def vit():
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return torchvision.models.VisionTransformer(image_size=16, patch_size=4, **sizes).cuda()


NETWORKS = pytest.mark.parametrize("network", [resnet, vit, convolutional])


class LateStreams(CudaStreams):
    """Every read comes milliseconds after the forward pass went on."""

    def launch(self, work):
        def late():
            torch.cuda._sleep(5_000_000)
            return work()

        return super().launch(late)


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(minibatch, "GramKeeper", lambda *args, **kw: GramKeeper(*args, **kw, streams=LateStreams))


def both(*nets, data=None, **options):
    """Values on two streams, and on one."""
    with full_precision_convolutions():
        results = [
            cp.compare(*nets, images() if data is None else data, overlap=overlap, progress=False, **options)
            for overlap in (False, True)
        ]
    assert results[0].notes == results[1].notes
    return results[1].values, results[0].values


@NETWORKS
@pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF(), cp.RBF(bandwidth=20.0)], ids=repr)
def test_equals_one_stream(network, kernel):
    assert_allclose(*both(network(), network(), kernel=kernel), atol=1e-6)


@NETWORKS
def test_equals_one_stream_when_every_read_is_late(network, late):
    assert_allclose(*both(network(), convolutional(50.0)), atol=1e-6)


def test_late_reads_without_checking_are_wrong(late, monkeypatch):
    """Negative control of the test above."""
    monkeypatch.setattr(SideStream, "_check", lambda *_: None)
    with full_precision_convolutions():
        found = cp.compare(resnet(), resnet(), images(), overlap=True, progress=False).values
        expected = cp.compare(resnet(), resnet(), images(), progress=False).values
    assert abs(found - expected).max() > 1e-3


def test_under_autocast(late):
    assert_allclose(*both(vit(), vit(), autocast=torch.bfloat16), atol=1e-6)


def test_by_cupy(cupy, late):
    for kernel in (cp.Linear(), cp.RBF(), cp.RBF(bandwidth=20.0)):
        assert_allclose(*both(resnet(), vit(), kernel=kernel, backend="cupy"), atol=1e-6)


@NETWORKS
def test_the_host_does_not_wait_after_the_second_batch(no_waiting, network):
    data = images(6)

    def watched():
        yield from data[:3]  # the third batch is read before the second one is used
        with no_waiting:
            yield from data[3:]

    assert cp.compare(network(), network(), watched(), overlap=True, progress=False).meta["batches"] == len(data)


def test_the_profiler_counts_as_many_synchronisations_for_many_batches_as_for_few():
    net = resnet()

    def waits(data):
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            cp.compare(net, net, data, overlap=True, progress=False)
        names = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
        return sum(e.count for e in profile.key_averages() if e.key in names)

    # From six batches on, the end of a comparison reads two sums more.
    few, many = images(6), images(12)
    waits(few)
    assert waits(many) == waits(few)


def test_only_minibatches_with_a_layer_changed_in_place_run_twice(late):
    class Counted(nn.Sequential):
        passes = 0

        def forward(self, x):
            self.passes += 1
            return super().forward(x)

    net = Counted(convolutional())
    tidy = Counted(nn.Conv2d(3, 8, 3).cuda(), nn.ReLU(), nn.Flatten())
    cp.compare(net, tidy, images(6), overlap=True, progress=False)
    assert (net.passes, tidy.passes) == (7, 6)
