"""A model with dropout and batch norm is still in train mode when the user compares: results are of eval mode."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


class Functional(nn.Module):
    """Dropout by a function that looks at `self.training`, as many own networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.dropout(self.norm(self.first(x)).relu(), 0.5, self.training)
        return self.second(x)


def test_dropout_is_off_and_running_statistics_stay():
    torch.manual_seed(0)
    net = Functional().train()
    for _ in range(5):
        net(torch.randn(16, 6) * 3 + 1)
    batches = [torch.randn(8, 6) for _ in range(3)]
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    with torch.enable_grad():
        result = cp.compare(net, net, batches, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    check(result, net, batches)
    check_notes(result)
