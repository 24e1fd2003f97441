"""The checkpoints of one run, loaded into networks of their own and compared all at once: how do layers settle?"""

import copy

import numpy as np
import torch
from situation import activations, check_notes, values_of
from torch import nn

import cka_probe as cp


def test_every_pair_of_checkpoints():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    optimizer, saved = torch.optim.Adam(net.parameters(), 0.05), {}
    for step in range(3):
        saved[f"step {step}"] = copy.deepcopy(net.state_dict())
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    models = {}
    for name, weights in saved.items():
        models[name] = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
        models[name].load_state_dict(weights)
    batches = list(x.split(8))
    result = cp.compare_many(models, batches, progress=False)
    found = [
        {f"{name}/{row}": features for name, one in zip(models, batch, strict=True) for row, features in one.items()}
        for batch in zip(*(activations(model, batches, ["0", "1", "2"]) for model in models.values()), strict=True)
    ]
    np.testing.assert_allclose(result.values, values_of(found), atol=1e-6)
    assert result.row_models == tuple(name for name in models for _ in range(3))
    check_notes(result)
