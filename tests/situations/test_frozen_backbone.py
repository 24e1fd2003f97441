"""A frozen backbone with a head in training: the backbone stays in eval mode, and both networks share it."""

import torch
from situation import check, check_notes, images
from torch import nn

import cka_probe as cp


class Probed(nn.Module):
    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(8, classes)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


def backbone():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_two_heads_on_one_backbone():
    torch.manual_seed(0)
    shared = backbone().requires_grad_(False)
    x, y = Probed(shared, 3).train(), Probed(shared, 5).train()
    batches = [images(8, 8, seed=seed) for seed in range(3)]
    result = cp.compare(x, y, batches, progress=False)
    check(result, x, batches, y)
    assert any("share" in note for note in result.notes)
    assert len(result.notes) == 1
    assert [x.training, x.backbone.training, x.backbone[1].training] == [True, False, False]
    assert not any(p.requires_grad for p in shared.parameters())
    x(batches[0]).sum().backward()
    assert x.head.weight.grad is not None


def test_the_whole_against_its_backbone():
    torch.manual_seed(0)
    net = Probed(backbone(), 3)
    batches = [images(8, 8, seed=seed) for seed in range(2)]
    result = cp.compare(net, net.backbone, batches, progress=False)
    assert result.rows[-1] == "head"
    assert result.columns == ("0", "1", "2", "3", "4")
    check(result, net, batches, net.backbone)
    check_notes(result, "share")
