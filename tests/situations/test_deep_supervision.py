"""Deep supervision (UNet++, nnU-Net, HED): the network returns a list of score maps, one for each resolution."""

import torch
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


class Supervised(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 6, 3, 2), nn.Conv2d(6, 8, 3)])
        self.heads = nn.ModuleList([nn.Conv2d(channels, 2, 1) for channels in (4, 6, 8)])

    def forward(self, x):
        scores = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = torch.relu_(stage(x))
            scores.append(head(x))
        return scores[::-1]


def test_a_list_of_outputs():
    torch.manual_seed(0)
    net, batches = Supervised(), [images(6, 16, seed=seed) for seed in (0, 1)]
    result = cp.compare(net, net, batches, layers=["leaves", ""], progress=False)
    assert result.rows == (*(f"{kind}.{i}" for i in range(3) for kind in ("stages", "heads")), "model")
    check(result, net, batches)
    check_notes(result)
