"""GramKeeper: the deferred decisions of a GPU, run on the CPU; its review, notes and errors."""

import array_api_strict
import numpy as np
import pytest
import torch
from libraries import to_numpy
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import CaptureError
from cka_probe.capture.state import matmul_settings
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams.cuda import half_gram, tf32_products
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.estimators import RBF
from cka_probe.estimators.gram_accuracy import mean_over_spread
from cka_probe.estimators.hsic import flat_centred
from cka_probe.estimators.layer_grams import FEW, layer_gram, repeated_gram, unit_stack


@pytest.fixture
def deferred(monkeypatch):
    """Let compare work as on a GPU: repeat the decisions of the first batch, and read the findings at the end."""
    monkeypatch.setattr(minibatch, "GramKeeper", lambda *args, **kw: GramKeeper(*args, **kw, deferred=True))


def net(offset=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        model[2].bias += offset
    return model


def batches(count=4, n=FEW):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 8, generator=generator) for _ in range(count)]


def u_centred_measure(x):
    """`mean_over_spread` by its definition: |mean|^2 over n times the spread."""
    n = len(x)
    K = x @ x.T
    np.fill_diagonal(K, 0)
    total = K.sum()
    A = K - K.sum(0)[:, None] / (n - 2) - K.sum(1)[None, :] / (n - 2) + total / ((n - 1) * (n - 2))
    np.fill_diagonal(A, 0)
    return abs(total) / n**2 / np.linalg.norm(A)


class TestMeanOverSpread:
    def test_equals_its_definition(self, xp, rng):
        layers = [rng.normal(size=(9, 5)) + mean for mean in (0, 1, 10)]
        stack, _ = unit_stack([xp.asarray(x @ x.T) for x in layers], [1.0] * 3)
        expected = np.array([u_centred_measure(x) for x in layers]) * 2.0**-52 / 2.0**-23
        assert_allclose(to_numpy(mean_over_spread(stack)), expected, rtol=1e-9)

    def test_layer_gram_decides_by_it(self, rng):
        for mean in (0.1, 1.0, 3.0):
            x = (rng.normal(size=(FEW, 40)) + mean).astype(np.float32)
            measured = float(mean_over_spread(unit_stack([x @ x.T], [1.0])[0])[0])
            for limit in (measured * 0.99, measured * 1.01):
                assert layer_gram(x, limit=limit).mode == ("shifted" if limit < measured else "raw")

    def test_of_nan_infinity_zero_and_constant(self, xp):
        grams = np.stack([np.eye(4), np.zeros((4, 4)), np.ones((4, 4)), np.eye(4), np.eye(4)])
        grams[3, 1, 1], grams[4, 2, 0] = np.nan, np.inf
        found = to_numpy(mean_over_spread(xp.asarray(grams)))
        assert found[:3].tolist() == [0.0, 0.0, np.inf]
        assert np.isnan(found[3:]).all()


@pytest.mark.parametrize("mode", ["raw", "shifted", "scaled"])
def test_a_repeated_gram_is_prepared_as_its_mode_says(xp, rng, mode):
    x = rng.normal(size=(8, 5)) + 2
    found = repeated_gram(xp.asarray(x), mode)
    assert found.mode == mode
    factor = found.factor if isinstance(found.factor, float) else float(found.factor)
    centred = x if mode == "raw" else x - x.mean(0)
    assert_allclose(to_numpy(found.gram) * factor, centred @ centred.T, rtol=1e-9, atol=1e-12)


def test_unit_stack_takes_numbers_and_arrays_as_factors(xp, rng):
    grams = [xp.asarray(g) for g in rng.normal(size=(2, 4, 4))]
    _, divisors = unit_stack(grams, [1.0, xp.asarray(3.0)])
    expected = [np.abs(to_numpy(grams[0])).max(), 3 * np.abs(to_numpy(grams[1])).max()]
    assert_allclose(to_numpy(divisors), expected)


def test_array_api_strict_repeats_and_measures():
    x = array_api_strict.asarray(np.arange(20.0).reshape(5, 4), dtype=array_api_strict.float32)
    kept = repeated_gram(x, layer_gram(x).mode)
    assert mean_over_spread(unit_stack([kept.gram], [kept.factor])[0]).shape == (1,)


class TestDeferred:
    @pytest.mark.parametrize("kernel", [None, RBF()], ids=["linear", "rbf"])
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    def test_equals_the_cpu(self, monkeypatch, kernel, estimator):
        expected = cp.compare(net(), net(50.0), batches(), kernel=kernel, estimator=estimator, progress=False)
        monkeypatch.setattr(minibatch, "GramKeeper", lambda *args, **kw: GramKeeper(*args, **kw, deferred=True))
        found = cp.compare(net(), net(50.0), batches(), kernel=kernel, estimator=estimator, progress=False)
        assert_allclose(found.values, expected.values, atol=1e-6)
        assert found.notes == expected.notes

    def test_reads_nothing_after_the_first_batch(self, monkeypatch):
        keeper = GramKeeper(cp.Linear(), deferred=True)
        layers = {"raw": 0.0, "shifted": 10.0, "dead": None}
        generator = torch.Generator().manual_seed(0)

        def run(batch):
            kept = []
            for name, mean in layers.items():
                x = torch.zeros(FEW, 5) if mean is None else torch.randn(FEW, 5, generator=generator) + mean
                kept.append(keeper(name, x))
            stack, _ = unit_stack([k.gram for k in kept], [k.factor for k in kept])
            keeper.observe(batch, list(layers), kept, stack, flat_centred(stack, "unbiased"))

        run(0)
        assert keeper.modes == {"raw": "raw", "shifted": "shifted", "dead": "scaled"}

        def read(*_):
            raise AssertionError("a number was read from the device")

        for name in ("__bool__", "__float__", "__int__", "item", "tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, read)
        run(1)
        run(2)
        monkeypatch.undo()
        assert keeper.finish("net", list(layers)) == []

    def test_the_error_for_nan_names_model_layer_and_batch(self, deferred):
        data = batches()
        data[2][3, 1] = torch.nan
        with pytest.raises(CaptureError, match=r"Layer '0' of model_x \(Sequential\) gave NaN or infinity in batch 2"):
            cp.compare(net(), net(), data, progress=False)

    def test_the_error_for_infinity_with_another_kernel(self, deferred):
        data = batches()
        data[1][0, 0] = torch.inf
        with pytest.raises(CaptureError, match=r"Layer '0' of model_x .* in batch 1"):
            cp.compare(net(), net(), data, kernel=RBF(), progress=False)

    def test_a_nan_in_the_first_batch(self, deferred):
        data = batches()
        data[0][0, 0] = torch.nan
        with pytest.raises(CaptureError, match="in batch 0"):
            cp.compare(net(), net(), data, progress=False)

    def test_no_checkpoint_is_saved_after_a_nan(self, deferred, tmp_path, monkeypatch):
        monkeypatch.setattr("cka_probe.comparison.minibatch.CHECKPOINT_EVERY", 2)
        data = batches()
        data[1][0, 0] = torch.nan
        with pytest.raises(CaptureError, match="in batch 1"):
            cp.compare(net(), net(), data, checkpoint=tmp_path / "run.ckpt", progress=False)
        assert not list(tmp_path.iterdir())

    def test_a_growing_mean_gives_a_note(self, deferred):
        data = batches(5)
        for later in data[3:]:
            later += 15.0
        result = cp.compare(nn.Sequential(nn.Linear(8, 4)), nn.Sequential(nn.Linear(8, 4)), data, progress=False)
        note = [n for n in result.notes if "the mean of '0'" in n]
        assert len(note) == 2
        assert "model_x (Sequential): in 2 of 5 batches" in note[0]
        assert "The rounding error of its values there is " in note[0]

    def test_a_layer_that_is_constant_in_one_batch_gives_no_note(self, deferred):
        data = batches()
        data[2][:] = -1.0
        model = nn.Sequential(nn.ReLU())
        assert cp.compare(model, model, data, progress=False).notes == ()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_equals_float32_of_the_same_features(self, deferred, dtype):
        class Cast(nn.Module):
            def __init__(self, *steps):
                super().__init__()
                self.steps = steps

            def forward(self, x):
                for step in self.steps:
                    x = x.to(step)
                return x

        half = cp.compare(Cast(dtype), Cast(dtype), batches(), layers=lambda name, _: not name, progress=False)
        single = cp.compare(
            Cast(dtype, torch.float32),
            Cast(dtype, torch.float32),
            batches(),
            layers=lambda name, _: not name,
            progress=False,
        )
        assert_allclose(half.values, single.values, atol=1e-7)


class Drifting(nn.Module):
    """Features whose mean and spread are the last two columns of the batch."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.passes = 0

    def forward(self, batch):
        self.passes += 1
        return self.fc(batch[:, :8]) * batch[0, 9] + batch[0, 8]


class TestReview:
    """On the CPU a layer repeats its last decision; if that was wrong, the batch runs again."""

    @pytest.mark.parametrize("drift", [(300.0, 1.0), (3e4, 1.0), (0.0, 1e-20), (7.0, 0.0)])
    @pytest.mark.parametrize("first", [(0.0, 1.0), (50.0, 1.0)], ids=["raw", "shifted"])
    def test_a_later_batch_for_which_the_decision_is_wrong_runs_again(self, first, drift):
        torch.manual_seed(0)
        net, n = Drifting().double(), 2 * FEW
        stream = [
            torch.cat([torch.randn(n, 8), torch.tensor([drift if i == 2 else first]).expand(n, 2)], 1) for i in range(5)
        ]
        plain = nn.Linear(10, 5)
        with torch.no_grad():
            pairs = [(net(batch.double()).numpy(), plain(batch).double().numpy()) for batch in stream]
        net.float().passes = 0
        result = cp.compare(net, plain, stream, layers="", progress=False)
        # Less the first sample, a large mean is no danger.
        assert net.passes == len(stream) + (first == (0.0, 1.0) or drift[1] < 1)
        sums = np.zeros(3)
        for x, y in pairs:
            x, y = x - x.mean(0), y - y.mean(0)
            sums += [float(cp.hsic(a, b)) for a, b in ((x, y), (x, x), (y, y))]
        # The network itself rounds features of a large mean and a small spread.
        assert_allclose(result.values[0, 0], sums[0] / np.sqrt(sums[1] * sums[2]), atol=1e-6 + 1e-7 * drift[0])

    def test_nan_is_found_in_a_later_batch(self):
        net = torch.nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
        stream = [torch.randn(FEW, 8) for _ in range(4)]
        stream[2][3, 3] = torch.nan
        with pytest.raises(CaptureError, match=r"'0' of .* gave NaN or infinity in batch 2"):
            cp.compare(net, net, stream, progress=False)

    def test_without_a_review_each_batch_decides(self):
        keeper = GramKeeper(cp.Linear())
        x = torch.randn(FEW, 5)
        assert keeper("fc", x).mode == "raw"
        assert keeper("fc", x + 1000).mode == "shifted"
        keeper.reviewed = True
        keeper.modes = {}
        assert [keeper("fc", x).mode, keeper("fc", x + 1000).mode] == ["raw", "raw"]
        assert not keeper.review({"fc": keeper("fc", x + 1000)})
        assert keeper("fc", x + 1000).mode == "shifted"
        assert keeper.review({"fc": keeper("fc", x)})


def test_half_gram_on_a_device_without_products_into_float32(rng):
    x = torch.tensor(rng.normal(size=(6, 9)), dtype=torch.bfloat16)
    assert half_gram(x).dtype == torch.float32
    assert_allclose(half_gram(x).numpy(), (x.double() @ x.double().T).numpy(), rtol=1e-5, atol=1e-6)


def test_half_gram_with_products_into_float32(monkeypatch, rng):
    calls = []

    def mm(a, b, out_dtype=None):
        calls.append(out_dtype)
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr("cka_probe.comparison.grams.cuda.accumulates_in_float32", lambda *_: True)
    monkeypatch.setattr(torch, "mm", mm)
    x = torch.tensor(rng.normal(size=(6, 9)), dtype=torch.float16)
    assert_allclose(half_gram(x).numpy(), (x.double() @ x.double().T).numpy(), rtol=1e-5, atol=1e-6)
    assert calls == [torch.float32]


def test_tf32_is_restored_after_an_error():
    device = torch.device("cuda")
    settings = matmul_settings(device)
    before = settings.fp32_precision

    def fail():
        with tf32_products(device):
            assert settings.fp32_precision == "tf32"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert settings.fp32_precision == before


class TestOptions:
    def test_unknown_backend(self):
        with pytest.raises(ValueError, match=r'`backend` must be "torch" or "cupy", got "?\'?jax'):
            cp.compare(net(), net(), batches(), backend="jax", progress=False)

    def test_tf32_on_the_cpu(self):
        with pytest.raises(ValueError, match=r"tf32=True is for an NVIDIA GPU, but Sequential is on cpu"):
            cp.compare(net(), net(), batches(), tf32=True, progress=False)

    def test_in_the_dataset_scope(self):
        with pytest.raises(ValueError, match=r'`backend`, `tf32` and `overlap` are for scope="minibatch"'):
            cp.compare(net(), net(), batches(), tf32=True, scope="dataset", progress=False)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
    def test_cupy_without_a_gpu(self):
        with pytest.raises((ModuleNotFoundError, RuntimeError), match='backend="cupy" needs'):
            cp.compare(net(), net(), batches(), backend="cupy", progress=False)
