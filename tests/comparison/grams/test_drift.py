"""The test of whether minibatches are random subsets: no alarm in shuffled data, an alarm in data sorted by class."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import cka_probe as cp
from cka_probe.comparison.grams import keeper as keepers
from cka_probe.comparison.grams.drift import BatchMeans


def fed(samples, size):
    """The means of one layer after all batches of this size."""
    means = BatchMeans()
    means.layer = "fc"
    for batch in samples.split(size):
        means.see("fc", batch)
        means.end_batch()
    return means


KINDS = {
    "normal": lambda n, g: torch.randn(n, 10, generator=g),
    "one direction": lambda n, g: torch.randn(n, 1, generator=g) @ torch.randn(1, 10, generator=g),
    "heavy tails": lambda n, g: torch.randn(n, 10, generator=g) / torch.randn(n, 1, generator=g).abs() ** 0.5,
    "rare": lambda n, g: (torch.rand(n, 10, generator=g) < 0.02).float(),
    "classes": lambda n, g: (
        5 * torch.eye(10)[torch.randint(0, 10, (n,), generator=g)] + torch.randn(n, 10, generator=g)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "count"), [(4, 6), (16, 10), (64, 12)])
def test_shuffled_data_give_no_alarm(kind, size, count):
    generator = torch.Generator().manual_seed(0)
    assert not any(fed(KINDS[kind](size * count, generator), size).drift() for _ in range(100))


def test_a_large_mean_and_a_far_sample_give_no_alarm():
    samples = torch.randn(320, 10, generator=torch.Generator().manual_seed(0))
    assert fed(samples + 1e4, 32).drift() is None
    samples[40] *= 1e18
    assert fed(samples, 32).drift() is None


@pytest.mark.parametrize("size", [8, 32])
def test_the_share_between_batches(size):
    """Two classes of variance 1, at 1.5 from the mean of both: 2.25 of 3.25 lies between batches."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(1024, 6, generator=generator)
    samples[:512] += 3 * torch.sign(torch.randn(6, generator=generator))
    found = fed(samples, size).drift()
    assert found.layer == "fc"
    assert abs(found.share - 2.25 / 3.25) < 0.15


def test_a_share_too_small_to_matter_gives_no_alarm():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(20_000, 6, generator=generator)
    samples[:10_000] += 0.3
    assert fed(samples, 50).drift() is None


def test_a_minibatch_that_runs_twice_counts_once():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(64, 3, generator=generator)
    samples[:32] += 3.0
    means = BatchMeans()
    means.layer = "fc"
    for batch in samples.split(16):
        means.see("fc", torch.randn(16, 3, generator=generator))
        means.see("fc", batch)
        means.end_batch()
    assert abs(means.drift().share - fed(samples, 16).drift().share) < 1e-6


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


@pytest.fixture(scope="module")
def networks(digits):
    """Two small networks that recognise the digits."""
    x, y = digits
    trained = []
    for seed, width in ((0, 32), (1, 24)):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
        assert (net(x).argmax(1) == y).float().mean() > 0.95
        trained.append(net)
    return trained


class TestDigits:
    @pytest.mark.parametrize("deferred", [False, True])
    def test_sorted_by_class_gives_a_note(self, digits, networks, monkeypatch, deferred):
        monkeypatch.setattr(
            "cka_probe.comparison.minibatch.GramKeeper",
            lambda *args, **kw: keepers.GramKeeper(*args, **{**kw, "deferred": deferred}),
        )
        x, y = digits
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        sorted_by_class, shuffled = x[y.argsort()], x[order]
        right = cp.compare(*networks, list(shuffled.split(64)), progress=False)
        wrong = cp.compare(*networks, list(sorted_by_class.split(64)), progress=False)
        assert abs(wrong.values - right.values).max() > 0.008
        assert right.notes == ()
        (note,) = wrong.notes
        assert "% of the variance of '2' of model_" in note
        assert "shuffle=True" in note

    def test_one_layer_in_the_middle_is_enough(self, digits, networks):
        x, y = digits
        result = cp.compare(*networks, list(x[y.argsort()].split(32)), layers=["0"], progress=False)
        assert "as in data sorted by class" in result.notes[0]

    def test_untrained_networks_too(self, digits):
        x, y = digits
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 5))
        result = cp.compare(net, net, list(x[y.argsort()].split(32)), progress=False)
        assert "as in data sorted by class" in result.notes[0]

    def test_the_dataset_scope_is_exact_and_gives_no_note(self, digits, networks):
        x, y = digits
        result = cp.compare(*networks, list(x[y.argsort()].split(64)), scope="dataset", progress=False)
        assert not any("sorted" in note for note in result.notes)

    def test_many_rows_of_one_sample_are_no_drift(self):
        """With pooling="spatial" the positions of one image are rows, and they are alike."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(80, 3, 1, 1, generator=generator) + 0.1 * torch.randn(80, 3, 6, 6, generator=generator)
        net = nn.Sequential(nn.Conv2d(3, 4, 1))
        result = cp.compare(net, net, list(images.split(8)), pooling="spatial", progress=False)
        assert result.notes == ()
