"""Mixtures of experts: a router sends each sample to one expert, which may get nothing, some, or the whole batch."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


class Experts(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.stem, self.router = nn.Linear(5, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(8, 2)
        self.bias = torch.tensor(bias)

    def forward(self, x):
        x = self.stem(x)
        choice = (self.router(x) + self.bias).argmax(1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if (mine := choice == number).any():
                mixed[mine] = expert(x[mine])
        return self.head(mixed)


def moe(*bias):
    torch.manual_seed(0)
    return Experts(bias)


def test_experts_with_a_part_of_the_batch_are_left_out_with_a_note():
    net = moe(0.0, 0.0, -100.0)
    batches = [torch.randn(12, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("stem", "router", "head")
    check(result, net, batches)
    check_notes(result, r"'experts\.0\.0'.* left out", r"'experts\.1\.0'.* left out", r"'experts\.2\.0'.* left out")


def test_an_expert_that_takes_the_whole_first_batch_does_not_end_the_run():
    net = moe(0.0, 0.0, 0.0)
    batches = [torch.randn(12, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    with torch.no_grad():
        first = net.router(net.stem(batches[0])).argmax(1)
    batches[0] = batches[0][first == first.mode().values]  # all of these go to one expert
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("stem", "router", "head")
    check(result, net, batches)
    check_notes(result, r"experts\.")
