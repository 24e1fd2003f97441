"""A forward that draws random numbers: which layers depend on them, and that only these get a note."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import cka_probe as cp


class Sampling(nn.Module):
    """Encoder, a sample around its output, decoder: a variational autoencoder that samples in eval mode, too."""

    def __init__(self, draw):
        super().__init__()
        self.encoder, self.decoder, self.draw = nn.Linear(5, 4), nn.Linear(4, 5), draw

    def forward(self, x):
        mean = self.encoder(x)
        return self.decoder(mean + self.draw(mean))


DRAWS = {
    "noise": torch.randn_like,
    "dropout": lambda mean: nn.functional.dropout(mean, 0.5, training=True),
    "numpy": lambda mean: torch.from_numpy(np.random.randn(*mean.shape).astype("float32")),  # noqa: NPY002
    "python": lambda mean: random.random() * mean**2,
}


def batches():
    return [torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def compare(draw, **options):
    torch.manual_seed(0)
    net = Sampling(draw)
    return cp.compare(net, net, batches(), progress=False, **options)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_note_names_the_layers_that_depend_on_the_draws(draw):
    notes = compare(draw).notes
    assert len(notes) == 1
    assert "model_x (Sampling): its forward draws random numbers, on which 'decoder' depends." in notes[0]
    assert not compare(draw, layers=["encoder"]).notes


def test_draws_that_nothing_uses_give_no_note():
    """Some transformers draw for LayerDrop in eval mode as well."""
    assert not compare(lambda _mean: 0 * torch.rand([])).notes
    assert not compare(lambda mean: mean).notes


def test_the_run_that_looks_for_draws_changes_no_value_and_no_generator():
    torch.manual_seed(3)
    first = compare(DRAWS["noise"]).values
    after = torch.rand(3)
    assert np.array_equal(compare(DRAWS["noise"]).values, first)
    torch.manual_seed(0)
    Sampling(DRAWS["noise"])
    assert torch.equal(torch.rand(3), after)


class OwnGenerator(nn.Module):
    def __init__(self, used=True):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.layer = nn.Linear(4, 3)
        self.used = used

    def forward(self, x):
        noise = torch.randn(x.shape, generator=self.generator)
        return self.layer(x + noise if self.used else x)


@pytest.mark.parametrize("used", [True, False])
def test_a_generator_of_the_network_counts(used):
    net = OwnGenerator(used)
    result = cp.compare(net, net, [torch.randn(6, 4) for _ in range(3)], layers=["layer"], progress=False)
    assert any("draws random numbers, on which 'layer' depends" in note for note in result.notes) == used
