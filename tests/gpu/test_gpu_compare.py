"""compare on a GPU: values of the CPU, no waiting inside the loop, half precision, CuPy, notes and errors."""

import pytest
import torch
from gpu_networks import convolutional, full_precision_convolutions, images
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import CaptureError
from cka_probe.comparison.grams.cuda import by_cupy, half_gram

KERNELS = pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF(), cp.RBF(bandwidth=20.0), cp.Cosine()], ids=repr)


class Watched:
    """Batches during which the host must not wait for the GPU, except the first two.

    The first one decides how each layer is prepared; the second one shows which layers never change. A batch is read
    before the one before it is used, because it may have to be joined to it.
    """

    def __init__(self, batches, watch):
        self.batches, self.watch = batches, watch

    def __iter__(self):
        yield from self.batches[:3]
        with self.watch:
            yield from self.batches[3:]


@KERNELS
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equals_the_cpu(kernel, estimator, offset):
    with full_precision_convolutions():
        options = {"kernel": kernel, "estimator": estimator, "progress": False}
        on_gpu = cp.compare(convolutional(offset), convolutional(seed=1), images(), **options)
        expected = cp.compare(convolutional(offset).cpu(), convolutional(seed=1).cpu(), images(device="cpu"), **options)
    assert_allclose(on_gpu.values, expected.values, atol=1e-5)
    assert_allclose(on_gpu.standard_error, expected.standard_error, atol=1e-5)
    assert on_gpu.notes == expected.notes


@KERNELS
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_waits_for_nothing_after_the_second_batch(no_waiting, kernel, offset):
    data = Watched(images(6), no_waiting)
    result = cp.compare(convolutional(offset), convolutional(seed=1), data, kernel=kernel, progress=False)
    assert result.meta["batches"] == 6


def test_waits_for_nothing_under_autocast_with_tokens(no_waiting):
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).cuda()
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(32, 6, dtype=torch.bool)
    mask[::2, 4:] = False
    data = [{"x": torch.randn(32, 6, 8, generator=generator).cuda(), "attention_mask": mask.cuda()} for _ in range(6)]
    for pooling in ("auto", "flatten", "cls", "last"):
        cp.compare(
            model,
            model,
            Watched(data, no_waiting),
            forward=lambda model, batch: model(batch["x"]),
            pooling=pooling,
            autocast=torch.bfloat16,
            progress=False,
        )


def test_the_profiler_counts_as_many_synchronisations_for_many_batches_as_for_few():
    """A check by the driver's record, independent of torch's own warnings."""
    models = convolutional(), convolutional(seed=1)

    def waits(data):
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            cp.compare(*models, data, progress=False)
        return sum(
            e.count for e in profile.key_averages() if e.key in ("cudaStreamSynchronize", "cudaEventSynchronize")
        )

    # From six batches on, the end of a comparison reads two sums more.
    few, many = images(6), images(12)
    waits(few)
    assert waits(many) == waits(few)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_float32_of_the_same_features(dtype):
    class Cast(nn.Module):
        def __init__(self, *steps):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, device="cuda"))
            self.steps = steps

        def forward(self, x):
            for step in self.steps:
                x = x.to(step)
            return x

    whole = {"layers": lambda name, _: not name, "progress": False}
    data, other = images(), [batch.flip(1) + 0.1 * batch**2 for batch in images()]
    half = cp.compare(Cast(dtype), Cast(dtype), data, data_y=other, **whole)
    single = cp.compare(Cast(dtype, torch.float32), Cast(dtype, torch.float32), data, data_y=other, **whole)
    assert_allclose(half.values, single.values, atol=1e-4)


def test_autocast_is_near_float32():
    half = cp.compare(convolutional(), convolutional(), images(), autocast=torch.bfloat16, progress=False)
    whole = cp.compare(convolutional(), convolutional(), images(), progress=False)
    assert_allclose(half.values, whole.values, atol=2e-2)


def test_half_gram():
    x = torch.randn(64, 5000, device="cuda", dtype=torch.bfloat16)
    expected = (x.double() @ x.double().T).cpu().numpy()
    assert_allclose(half_gram(x).cpu().numpy(), expected, atol=1e-5 * expected.max())


def test_nan_is_named_with_model_layer_and_batch():
    data = images()
    data[2][5, 0, 0, 0] = torch.nan
    with pytest.raises(CaptureError, match=r"Layer '0' of model_x \(Sequential\) gave NaN or infinity in batch 2"):
        cp.compare(convolutional(), convolutional(), data, progress=False)


def test_a_mean_that_grows_is_noted():
    data = images()
    data[3] += 30.0
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).cuda()
    result = cp.compare(model, model, data, progress=False)
    assert any("'0' lay further above its spread" in note for note in result.notes)


def test_tf32_is_near_and_is_given_back():
    before = torch.backends.cuda.matmul.fp32_precision
    found = cp.compare(convolutional(), convolutional(seed=1), images(), tf32=True, progress=False)
    expected = cp.compare(convolutional(), convolutional(seed=1), images(), progress=False)
    assert_allclose(found.values, expected.values, atol=1e-2)
    assert torch.backends.cuda.matmul.fp32_precision == before


class TestCupy:
    @KERNELS
    @pytest.mark.parametrize("offset", [0.0, 100.0])
    def test_equals_torch(self, cupy, kernel, offset):
        models = convolutional(offset), convolutional(seed=1)
        found = cp.compare(*models, images(), kernel=kernel, backend="cupy", progress=False)
        expected = cp.compare(*models, images(), kernel=kernel, progress=False)
        assert_allclose(found.values, expected.values, atol=1e-5)

    def test_on_a_stream_of_its_own(self, cupy):
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.randn(64, 20_000, device="cuda")
            found = by_cupy(cp.Linear(), x)
            assert_allclose(found.cpu().numpy(), (x @ x.T).cpu().numpy(), rtol=1e-4, atol=0.1)

    def test_a_kernel_of_the_estimators(self, cupy):
        x = torch.randn(32, 7, device="cuda")
        assert_allclose(by_cupy(cp.RBF(), x).cpu().numpy(), cp.RBF()(x).cpu().numpy(), atol=1e-6)


class OnTwoDevices(nn.Module):
    """Its first part is on the CPU, its second on the GPU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 6)).cuda()

    def forward(self, x):
        return self.second(self.first(x).to(next(self.second.parameters()).device))


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_a_network_that_is_spread_over_devices_equals_the_same_network_on_one(scope):
    data = [torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    spread, whole = OnTwoDevices(), OnTwoDevices().cpu()
    result = cp.compare(spread, spread, data, scope=scope, progress=False)
    expected = cp.compare(whole, whole, data, scope=scope, progress=False)
    assert_allclose(result.values, expected.values, atol=1e-5)
    assert next(spread.second.parameters()).is_cuda
    assert not next(spread.first.parameters()).is_cuda


def test_an_offloaded_network_runs_on_the_gpu_and_stays_offloaded():
    accelerate = pytest.importorskip("accelerate")
    data = [torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 6))
    torch.manual_seed(0)
    offloaded = nn.Sequential(nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 6))
    accelerate.cpu_offload(offloaded, execution_device=torch.device("cuda"))
    result = cp.compare(offloaded, plain, data, progress=False)
    assert_allclose(result.values, cp.compare(plain, plain, data, progress=False).values, atol=1e-5)
    assert all(parameter.is_meta for parameter in offloaded.parameters())
