"""LoRA that merges its weights in `eval()` and takes them out in `train()`, as loralib does, in a training loop."""

import copy

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


class LoraLinear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight.requires_grad = False
        self.down = nn.Parameter(torch.randn(2, inputs) / 4)
        self.up = nn.Parameter(torch.randn(outputs, 2) / 4)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (self.up @ self.down).data * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        out = nn.functional.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.down.T @ self.up.T


def test_training_goes_on_after_a_comparison():
    torch.manual_seed(0)
    net = nn.Sequential(LoraLinear(6, 8), nn.Tanh(), LoraLinear(8, 3))
    start = copy.deepcopy(net)
    batches = [torch.randn(8, 6) for _ in range(3)]
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for batch in batches:
        result = cp.compare(start, net, batches, progress=False)
        assert all(layer.training and not layer.merged for layer in (net[0], net[2], start[0]))
        check(result, start, batches, net)
        check_notes(result)
        optimizer.zero_grad()
        net(batch).square().sum().backward()
        assert all(p.grad is not None for p in optimizer.param_groups[0]["params"])
        optimizer.step()


def test_layers_that_were_merged_stay_merged():
    torch.manual_seed(0)
    net = nn.Sequential(LoraLinear(6, 8), nn.Tanh(), LoraLinear(8, 3))
    net[0].eval()
    weight = net[0].weight.clone()
    cp.compare(net, net, [torch.randn(8, 6)], progress=False)
    assert [net.training, net[0].training, net[2].training] == [True, False, True]
    assert [net[0].merged, net[2].merged] == [True, False]
    assert torch.equal(net[0].weight, weight)
