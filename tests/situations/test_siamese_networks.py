"""Siamese networks (SimSiam, face verification): one encoder runs on both images of a pair, two calls of each layer."""

import torch
from situation import check, check_notes, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 6))
        self.head = nn.Linear(6, 1)

    def forward(self, a, b):
        return self.head((self.encoder(a) - self.encoder(b)).abs())


def test_both_calls_of_each_layer():
    torch.manual_seed(0)
    net, pairs = Siamese(), TensorDataset(images(12, 8, seed=0), images(12, 8, seed=1), torch.zeros(12))
    data = DataLoader(
        pairs,
        batch_size=6,
        collate_fn=lambda rows: ((torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])), 0),
    )
    result = cp.compare(net, net, data, layers=["encoder", "encoder.*", "head"], progress=False)
    assert {"encoder.0", "encoder.0#2", "encoder", "encoder#2", "head"} <= set(result.rows)
    check(result, net, list(data))
    check_notes(result)
