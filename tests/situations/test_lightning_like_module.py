"""Modules as Lightning has them: the network is one child, loss and metrics are others, which run in training only."""

import torch
from situation import check, check_notes, images, needs
from torch import nn

import cka_probe as cp


class Module(nn.Module):
    def __init__(self, metrics):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
        self.head, self.loss = nn.Linear(144, 3), nn.CrossEntropyLoss()
        self.accuracy = metrics.Accuracy(task="multiclass", num_classes=3)

    def forward(self, x):
        return self.head(self.backbone(x))


def test_what_does_not_run_is_left_out_with_one_note():
    metrics = needs("torchmetrics", "distill")
    torch.manual_seed(0)
    net, batches = Module(metrics), [(images(6, 8, seed=seed), torch.zeros(6)) for seed in (0, 1)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("backbone.0", "backbone.1", "backbone.2", "head")
    check(result, net, batches)
    check_notes(result, r"'loss', 'accuracy' were left out: .*did not run")
