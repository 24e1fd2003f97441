"""Variational autoencoders that sample in eval mode too: two copies of one network differ behind the samples."""

import copy

import torch
from situation import activations, check_notes, images, values_of
from torch import nn

import cka_probe as cp


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), nn.Linear(4, 48)

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)
        return self.decoder(torch.distributions.Normal(mean, log_scale.exp()).rsample()), mean


def test_the_encoders_agree_and_a_note_names_what_the_samples_reach():
    torch.manual_seed(0)
    net, batches = Variational(), [images(12, 4, seed=seed) for seed in (0, 1)]
    result = cp.compare(net, copy.deepcopy(net), batches, progress=False)
    encoder = values_of(activations(net, batches, ["encoder.0", "encoder.1"]))
    assert abs(result.values[:2, :2] - encoder).max() < 1e-6
    assert result.values[2, 2] < 0.99
    check_notes(
        result, r"model_x .*random numbers, on which 'decoder' depends", r"model_y .*on which 'decoder' depends"
    )
    alone = cp.compare(net, net, batches, layers=["encoder"], progress=False)
    check_notes(alone)
