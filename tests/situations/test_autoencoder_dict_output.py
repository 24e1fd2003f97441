"""Autoencoders that return a dict: the loss (a number), integer codes, the reconstruction, the latent vector."""

import torch
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh())
        self.decoder = nn.Linear(6, 48)

    def forward(self, x):
        latent = self.encoder(x)
        made = self.decoder(latent)
        loss = (made - x.flatten(1)).square().mean()
        return {"loss": loss, "codes": (latent > 0).long(), "reconstruction": made, "latent": latent}


def test_the_whole_network_is_compared_by_a_tensor_with_samples():
    torch.manual_seed(0)
    net, batches = Autoencoder(), [images(8, 4, seed=seed) for seed in (0, 1)]
    result = cp.compare(net, net, batches, layers=["encoder", "decoder", ""], progress=False)
    assert result.rows == ("encoder", "decoder", "model")
    check(result, net, batches, pick=lambda _row, out: out["reconstruction"] if isinstance(out, dict) else out)
    check_notes(result)
