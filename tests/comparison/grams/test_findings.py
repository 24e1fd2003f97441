"""Rounding, far samples, constant batches and kernels without a bandwidth: the right value or a note, on every path."""

import numpy as np
import pytest
import reference
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import Branches
from torch import nn

import cka_probe as cp
from cka_probe.comparison.grams.keeper import GramKeeper


class Affine(nn.Module):
    """The input times ``factor`` plus ``shift``."""

    def __init__(self, factor=1.0, shift=0.0):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x):
        return x * self.factor + self.shift


@pytest.fixture(params=["cpu", "deferred"])
def path(request, monkeypatch):
    """The comparison as on the CPU, and as on a GPU, where nothing is read after the first batch."""
    deferred = request.param == "deferred"
    monkeypatch.setattr(
        "cka_probe.comparison.minibatch.GramKeeper",
        lambda *args, **kw: GramKeeper(*args, **{**kw, "deferred": deferred}),
    )
    return request.param


def linear(seed, width=6):
    torch.manual_seed(seed)
    return nn.Linear(8, width)


def batches(count=6, size=20):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 8, generator=generator) for _ in range(count)]


def compared(*args, **kwargs):
    return cp.compare(*args, progress=False, **kwargs)


def by_kernel(net_x, net_y, data, kernel_of):
    """Minibatch CKA of the outputs in float64; ``kernel_of`` makes a kernel of pairs for the samples of one batch."""
    sums = np.zeros(3)
    for batch in data:
        features = [net(batch).detach().double().numpy() for net in (net_x, net_y)]
        K, L = (reference.gram(f, kernel_of(f)) for f in features)
        sums += len(batch) * np.array([reference.hsic1(K, L), reference.hsic1(K, K), reference.hsic1(L, L)])
    return sums[0] / np.sqrt(sums[1] * sums[2])


def median_rbf(features):
    return reference.rbf(reference.median_distance(features))


class TestRankCollapse:
    def test_a_spread_near_the_rounding_of_the_mean_gives_a_note(self, path):
        net = nn.Sequential(linear(0), Affine(3e-8, 1.0))
        result = compared(net, nn.Sequential(linear(1)), batches())
        # The second layer is the first up to a scale and a shift, so the right values are equal.
        assert abs(result["1", "0"] - result["0", "0"]) > 0.01
        note = result.notes[0] if path == "cpu" else next(note for note in result.notes if "one step" in note)
        assert note.startswith(
            "model_x (Sequential): the spread of '1' is so small beside the mean that one step of float"
        )
        assert "model.double()" in note

    def test_two_networks_and_many_layers_are_a_line_each(self, path):
        net = nn.Sequential(linear(0), Affine(1e-7, 1.0), *(Affine() for _ in range(9)))
        notes = compared(net, Branches(Affine(1e-8, -7.0)), batches()).notes
        assert len(notes) == 2
        assert "and 4 more" in notes[0]

    @pytest.mark.parametrize("mean", [1e3, 1e5])
    def test_a_large_mean_that_float32_resolves_gives_no_note(self, path, mean):
        net = nn.Sequential(linear(0), Affine(1.0, mean))
        data = batches()
        result = compared(net, nn.Sequential(linear(1)), data)
        expected = reference_cka([cloned(net, b) for b in data], [cloned(nn.Sequential(linear(1)), b) for b in data])
        assert_allclose(result.values, expected, atol=1e-6)
        assert result.notes == ()

    def test_a_feature_that_never_changes_has_no_rounding(self, path):
        class OneConstant(nn.Module):
            def forward(self, x):
                return torch.cat([x, torch.full_like(x[:, :1], 3e8)], 1)

        net = nn.Sequential(linear(0), OneConstant())
        result = compared(net, net, batches())
        assert_allclose(result["0", "1"], 1.0, atol=1e-6)
        assert result.notes == ()

    def test_in_float64_nothing_is_lost(self, path):
        net = nn.Sequential(linear(0), Affine(1e-7, 1.0)).double()
        data = [b.double() for b in batches()]
        result = compared(net, nn.Sequential(linear(1)).double(), data)
        assert_allclose(result["1", "0"], result["0", "0"], atol=1e-6)
        assert result.notes == ()


class TestFarSample:
    @pytest.mark.parametrize("far", [1e4, 1e6, 1e10, 1e18])
    @pytest.mark.parametrize("mean", [0.0, 40.0])
    def test_is_exact_on_the_cpu(self, far, mean):
        """The right value by float64: with means removed over the ordinary samples, it keeps 10 digits."""
        nets = [nn.Sequential(linear(s), Affine(1.0, mean)) for s in (0, 1)]
        data = batches()
        data[3][5] *= far
        result = compared(*nets, data, layers=["1"])
        sums = np.zeros(3)
        for batch in data:
            grams = []
            for net in nets:
                x = net(batch).detach().double().numpy()
                x = x - np.median(x, axis=0)
                K = x @ x.T
                np.fill_diagonal(K, 0)
                n = len(K)
                r = K.sum(1)
                A = K - r[:, None] / (n - 2) - r / (n - 2) + r.sum() / ((n - 1) * (n - 2))
                np.fill_diagonal(A, 0)
                grams.append(A)
            A, B = grams
            sums += np.array([(A * B).sum(), (A * A).sum(), (B * B).sum()]) / (n - 3)
        assert_allclose(result.values[0, 0], sums[0] / np.sqrt(sums[1] * sums[2]), atol=2e-6)
        assert result.notes  # one sample decides the value

    @pytest.mark.parametrize("far", [1e5, 1e8, 1e15])
    def test_the_note_gives_its_number(self, path, far):
        data = batches()
        data[3][5] *= far
        notes = compared(
            nn.Sequential(linear(0), Affine(1.0, 40.0)), nn.Sequential(linear(1), Affine(1.0, 40.0)), data
        ).notes
        assert any("sample 5 of batch 3" in note for note in notes)
        assert len([note for note in notes if "sample 5" in note]) == 2

    def test_in_the_first_batch(self, path):
        data = batches()
        data[0][2] *= 1e15
        assert any("sample 2 of batch 0" in note for note in compared(linear(0), linear(1), data).notes)

    def test_a_batch_of_another_scale_gives_a_note(self, path):
        data = batches()
        data[4] *= 30.0
        notes = compared(nn.Sequential(linear(0)), nn.Sequential(linear(1)), data).notes
        assert any(
            "one of the 6 batches has more than half of the weight in the values of '0'" in note for note in notes
        )

    def test_batches_that_vary_a_little_give_no_note(self, path):
        data = [b * (1 + 0.2 * i) for i, b in enumerate(batches())]
        assert compared(nn.Sequential(linear(0)), nn.Sequential(linear(1)), data).notes == ()


class TestKernels:
    @pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
    def test_the_scale_of_the_features_does_not_matter(self, path, scale):
        nets = nn.Sequential(linear(0), Affine(scale)), nn.Sequential(linear(1), Affine())
        expected = by_kernel(linear(0), linear(1), batches(), median_rbf)
        result = compared(*nets, batches(), layers=["1"], kernel=cp.RBF())
        assert_allclose(result.values[0, 0], expected, atol=2e-5)
        assert result.notes == ()

    @pytest.mark.parametrize("kernel", [cp.RBF(), cp.Laplacian()])
    def test_a_constant_batch_has_no_weight(self, path, kernel):
        data = batches()
        data[2] = data[2][:1].repeat(20, 1)
        ordinary = [b for i, b in enumerate(data) if i != 2]
        x, y = nn.Sequential(linear(0)), nn.Sequential(linear(1))
        result = compared(x, y, data, kernel=kernel)
        assert_allclose(result.values, compared(x, y, ordinary, kernel=kernel).values, atol=1e-6)
        assert "'0' is constant over the samples of 1 of 6 batches" in result.notes[0]

    @pytest.mark.parametrize("place", [0, 3])
    def test_a_median_distance_of_zero_is_called_so(self, path, place):
        data = batches()
        data[place][:15] = data[place][0]
        result = compared(nn.Sequential(linear(0)), nn.Sequential(linear(1)), data, kernel=cp.RBF())
        assert np.isnan(result.values).all()
        assert all("median distance is 0" in note and "RBF(bandwidth=1.0)" in note for note in result.notes)
        assert len(result.notes) == 2

    def test_one_hot_features_are_not_called_constant(self, path):
        data = [torch.eye(8)[torch.randperm(8, generator=torch.Generator().manual_seed(i))] for i in range(3)]
        net = nn.Sequential(nn.Identity())
        for kernel in (cp.Linear(), cp.RBF()):
            (note,) = compared(net, net, data, kernel=kernel).notes
            assert "'0' is not constant" in note

    def test_a_bandwidth_that_does_not_fit_is_called_so(self, path):
        net = nn.Sequential(nn.Identity())
        data = [b * 1e10 for b in batches()]
        (note,) = compared(net, net, data, kernel=cp.RBF(bandwidth=1.0)).notes
        assert "'0' is not constant, but RBF(bandwidth=1.0" in note

    def test_cosines_of_features_with_a_large_mean(self, path):
        x, y = nn.Sequential(linear(0), Affine(1.0, 300.0)), nn.Sequential(linear(1), Affine(1.0, 300.0))
        result = compared(x, y, batches(), layers=["1"], kernel=cp.Cosine())
        K = [[net(b).detach().double().numpy() for b in batches()] for net in (x, y)]
        sums = np.zeros(3)
        for f, g in zip(*K, strict=True):
            A, B = (reference.gram(z, reference.cosine) - 1 for z in (f, g))
            sums += [reference.hsic1(A, B), reference.hsic1(A, A), reference.hsic1(B, B)]
        assert_allclose(result.values[0, 0], sums[0] / np.sqrt(sums[1] * sums[2]), atol=2e-5)

    def test_a_zero_sample_has_the_cosine_zero(self, path):
        """The convention of the kernel: k(0, v) = 0."""
        data = batches()
        data[1][4] = 0.0
        net = nn.Sequential(nn.Identity())
        result = compared(net, nn.Sequential(nn.Linear(8, 5, bias=False)), data, kernel=cp.Cosine())
        assert np.isfinite(result.values).all()
        assert result.notes == ()


class TestConstantLayers:
    def test_many_are_one_line(self, path):
        net = nn.Sequential(nn.Linear(8, 8), Affine(0.0, 1.0), *(Affine() for _ in range(20)))
        result = compared(net, net, batches())
        (note,) = result.notes
        assert note.startswith(
            "model_x (Sequential): 21 layers are constant over the samples of every batch, so their similarity is "
            "undefined: '1', '2'"
        )
        assert note.endswith("and 15 more")

    def test_in_most_batches(self, path):
        data = batches()
        for batch in data[:4]:
            batch[:] = batch[:1]
        assert (
            "'0' is constant over the samples of 4 of 6 batches"
            in compared(nn.Sequential(linear(0)), nn.Sequential(linear(0)), data).notes[0]
        )


class TestSecondExamples:
    """Another situation of each kind, chosen after the first was mended."""

    def test_a_saturated_sigmoid_is_a_rank_collapse(self, path):
        net = nn.Sequential(linear(0), nn.Sigmoid())
        with torch.no_grad():
            net[0].weight.mul_(1e-6)
            net[0].bias.fill_(3.0)
        notes = compared(net, nn.Sequential(linear(1)), batches()).notes
        assert any("the spread of '0', '1' is so small" in note for note in notes)

    def test_two_far_samples_in_one_batch(self):
        data = batches()
        data[1][3] *= 1e7
        data[1][9] *= 1e12
        x, y = nn.Sequential(linear(0)), nn.Sequential(linear(1))
        sums = np.zeros(3)
        for batch in data:
            z = [net(batch).detach().double().numpy() for net in (x, y)]
            K, L = (f @ f.T for f in (one - np.median(one, axis=0) for one in z))
            sums += [reference.hsic1(K, L), reference.hsic1(K, K), reference.hsic1(L, L)]
        result = compared(x, y, data)
        assert_allclose(result.values[0, 0], sums[0] / np.sqrt(sums[1] * sums[2]), atol=1e-5)
        assert any("sample 9 of batch 1" in note for note in result.notes)

    def test_a_slow_process_cut_into_batches_is_like_sorted_data(self, path):
        generator = torch.Generator().manual_seed(0)
        state, frames = torch.zeros(8), []
        for _ in range(200):
            state = 0.97 * state + 0.24 * torch.randn(8, generator=generator)
            frames.append(state)
        frames = torch.stack(frames)
        x, y = nn.Sequential(linear(0)), nn.Sequential(linear(1))
        notes = compared(x, y, list(frames.split(20))).notes
        assert any("the batches differ more than random ones" in note for note in notes)
        shuffled = frames[torch.randperm(200, generator=generator)]
        assert compared(x, y, list(shuffled.split(20))).notes == ()

    def test_a_kernel_of_the_user_that_overflows(self, path):
        def exponential(x, _y=None):
            return torch.exp(x @ x.T)

        data = [50 * batch for batch in batches()]
        result = compared(nn.Sequential(linear(0)), nn.Sequential(linear(1)), data, kernel=exponential)
        assert np.isnan(result.values).all()
        assert all("gives NaN or infinity for their features" in note for note in result.notes)
