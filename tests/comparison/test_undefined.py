"""A whole data set: layers without a value are called what they are; rounding and far samples give notes."""

import numpy as np
import pytest
import reference
import torch
from torch import nn

import cka_probe as cp


class Affine(nn.Module):
    def __init__(self, factor=1.0, shift=0.0):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x):
        return x * self.factor + self.shift


ROUTES = ["moments", "grams", "disk", "blocks", "sketch"]


@pytest.fixture(params=ROUTES)
def route(request):
    """Each way to the values over a whole data set."""
    return request.param


def batches(count=5, size=20):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 8, generator=generator) for _ in range(count)]


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(8, 6)


def over(route, x, y, data, **kwargs):
    result = cp.compare(x, y, data, scope="dataset", route=route, progress=False, **kwargs)
    return result, [note for note in result.notes if not note.startswith(("route ", "the values are estimates"))]


class TestConstant:
    def test_many_layers_are_one_line(self, route):
        net = nn.Sequential(linear(0), Affine(0.0, 0.3), *(Affine() for _ in range(9)))
        _, notes = over(route, net, net, batches())
        (note,) = notes
        assert "10 layers are constant over all samples, so their similarity is undefined: '1'" in note
        assert note.endswith("and 4 more")

    def test_a_layer_is_not_constant_because_the_other_one_is(self, route):
        result, notes = over(route, nn.Sequential(linear(0)), nn.Sequential(Affine(0.0, 1.0)), batches())
        assert np.isnan(result.values).all()
        assert notes == ["model_y (Sequential): '0' is constant over all samples, so its similarity is undefined"]

    def test_one_hot_features_are_not_called_constant(self, route):
        if route == "sketch":
            pytest.skip("random projections of one-hot features are not equally similar")
        net = nn.Sequential(nn.Identity())
        (note,) = over(route, net, net, [torch.eye(16)])[1]
        assert "'0' is not constant, but all pairs of its samples are equally similar" in note


class TestRounding:
    def test_rank_collapse(self, route):
        _, notes = over(route, nn.Sequential(linear(0), Affine(1e-7, 1.0)), nn.Sequential(linear(1)), batches())
        (note,) = notes
        assert "the spread of '1' is so small beside the mean that one step of float32" in note

    @pytest.mark.parametrize("mean", [0.0, 1e5])
    def test_a_mean_that_float32_resolves_gives_no_note(self, route, mean):
        assert over(route, nn.Sequential(linear(0), Affine(1.0, mean)), nn.Sequential(linear(1)), batches())[1] == []

    def test_saved_features(self):
        x = np.random.default_rng(0).normal(size=(50, 4))
        collapsed = (x * 1e-7 + 1).astype(np.float32)
        notes = cp.compare_features({"a": collapsed}, {"b": x.astype(np.float32)}, progress=False).notes
        assert any("x: the spread of 'a' is so small" in note for note in notes)


class TestFarSample:
    @pytest.mark.parametrize("far", [1e3, 1e8, 1e18])
    def test_has_a_note_with_its_number(self, route, far):
        data = batches()
        data[2][7] *= far
        _, notes = over(route, nn.Sequential(linear(0)), nn.Sequential(linear(1)), data)
        number = "index 47" if route in ("grams", "disk") else "sample 7 of batch 2"
        assert len(notes) == 2
        assert all(number in note for note in notes)
        assert not any("constant" in note for note in notes)

    @pytest.mark.parametrize("exact", ["grams", "blocks"])
    def test_is_exact_where_the_features_fit(self, exact):
        data = batches()
        data[2][7] *= 1e10
        x, y = nn.Sequential(linear(0)), nn.Sequential(linear(1))
        found = cp.compare_features(
            {"0": x(torch.cat(data)).detach()}, {"0": y(torch.cat(data)).detach()}, route=exact, progress=False
        )
        grams = []
        for net in (x, y):
            z = net(torch.cat(data)).detach().double().numpy()
            z = z - np.median(z, axis=0)
            grams.append(z @ z.T)
        assert abs(found.values[0, 0] - reference.cka_grams(*grams)) < 2e-6

    def test_ordinary_data_have_no_note(self, route):
        assert over(route, nn.Sequential(linear(0)), nn.Sequential(linear(1)), batches())[1] == []


class TestKernels:
    @pytest.mark.parametrize("kernel", [cp.RBF(), cp.Laplacian()])
    def test_a_median_of_zero_is_called_so(self, route, kernel):
        if route == "moments" or (route == "sketch" and kernel == cp.Laplacian()):
            pytest.skip("the route does not have this kernel")

        class Sparse(nn.Module):
            def forward(self, x):
                return (x - 0.9).relu() * (torch.arange(8) < 1)

        net = nn.Sequential(linear(0), nn.Identity())
        sparse = nn.Sequential(nn.Identity(), Sparse())
        result, notes = over(route, net, sparse, batches(), kernel=kernel)
        assert np.isfinite(result["0", "0"])
        assert np.isnan(result["0", "1"])
        (note,) = notes
        assert "model_y (Sequential): '1' is not constant, but the median distance is 0" in note
        assert "(bandwidth=1.0)" in note

    def test_a_scale_beyond_float32(self, route):
        if route == "moments":
            pytest.skip("the route has the linear kernel only")
        x, y = nn.Sequential(linear(0), Affine(1e20)), nn.Sequential(linear(1))
        result, notes = over(route, x, y, batches(), kernel=cp.RBF())
        assert abs(result["1", "0"] - result["0", "0"]) < (0.2 if route == "sketch" else 1e-5)
        assert notes == []


def test_p_values_are_never_zero():
    x = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    result = cp.compare_features({"a": x}, {"b": x}, progress=False)
    assert 0 < result.p_value[0, 0] < 1e-300
