"""Generators of GANs: the data are vectors of noise, and StyleGAN adds noise of its own inside the forward."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


class Noise(nn.Module):
    """Noise for each pixel: drawn anew, or a buffer ("const"), scaled by a learnt strength."""

    def __init__(self, side, constant):
        super().__init__()
        self.register_buffer("noise", torch.randn(1, 1, side, side) if constant else None)
        self.strength, self.side = nn.Parameter(torch.ones(()) / 2), side

    def forward(self, x):
        noise = torch.randn(len(x), 1, self.side, self.side) if self.noise is None else self.noise
        return x + self.strength * noise


def generator(constant):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4),
        nn.BatchNorm2d(8),
        Noise(4, constant),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 3, 2, 2),
        nn.Tanh(),
    )


def latents():
    return [torch.randn(9, 6, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def test_constant_noise():
    net, batches = generator(constant=True), latents()
    result = cp.compare(net, net, batches, progress=False)
    check(result, net, batches)
    check_notes(result)


def test_noise_that_each_forward_draws():
    net, batches = generator(constant=False), latents()
    torch.manual_seed(5)
    result = cp.compare(net, net, batches, progress=False)
    torch.manual_seed(5)
    check(result, net, batches)
    check_notes(result, r"draws random numbers, on which '2', '3', '4', '5' depend")
