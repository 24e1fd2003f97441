"""Small networks, data and plain training loops for the tests of tasks other than the classification of images."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from cka_probe.distill import distill

N = 16


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(seed, high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def linear(seed=0, inputs=6, outputs=4):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


class Tagger(nn.Module):
    """Scores (B, T, 5) for tokens (B, T)."""

    def __init__(self, seed=0, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(20, width)
        self.head = nn.Linear(width, 5)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embed(input_ids))


def trained_by_hand(student, steps, loss_of, rate=0.1):
    """Full-batch gradient descent: the order of the samples does not matter."""
    descent = torch.optim.SGD(student.parameters(), lr=rate)
    values = []
    for _ in range(steps):
        loss = loss_of(student)
        descent.zero_grad()
        loss.backward()
        descent.step()
        values.append(float(loss.detach()))
    return values


def train(student, data, test=None, teacher=None, loss=None, steps=3, **options):
    options = {
        "learning_rate": 0.1, "weight_decay": 0.0, "optimizer": torch.optim.SGD, "schedule": lambda *_: 1.0,
        "progress": False, "epochs": steps, **options,
    }  # fmt: skip
    if not isinstance(data, DataLoader):
        options.setdefault("batch_size", len(data))
    return distill(teacher, student, data, test, loss, **options)


def same_weights(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


x = seeded(0, N, 6)
labels = integers(1, 4, N)
