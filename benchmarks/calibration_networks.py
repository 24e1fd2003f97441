"""Real features for `calibration.py`: layers of small networks that are trained here on images, digits and text.

Three tasks with two networks each: convolutions on Fashion-MNIST, perceptrons on scikit-learn's digits, transformers
that predict the next character of Python's help texts. Training takes about five minutes on one core.
"""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cka_probe import extract

SAMPLES = 4096
CONTEXT = 64


class Characters(nn.Module):
    """A causal transformer over characters; returns scores (samples, length, characters)."""

    def __init__(self, characters: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the next character at each place."""
        h = self.embedding(x) + self.position
        for block in self.blocks:
            h = block(h, src_mask=self.mask, is_causal=True)
        return self.head(h)


def convolutions(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * width, 10),
    )  # fmt: skip


def perceptron(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


def fit(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, seed: int, batch: int = 64) -> float:
    """Train in place; the mean loss of the last fifth of the steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        some = torch.randint(len(x), (batch,), generator=generator)
        loss = nn.functional.cross_entropy(net(x[some]).flatten(0, -2), y[some].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-steps // 5 :]))


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Inputs and targets (n, context) for training, and inputs for measuring; the number of characters."""
    text = "\n".join(pydoc_data.topics.topics.values())
    known = {character: i for i, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[character] for character in text])
    pieces = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    pieces = pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))]
    held_out = pieces[: SAMPLES if len(pieces) > 2 * SAMPLES else len(pieces) // 2]
    train = pieces[len(held_out) :]
    return train[:, :-1], train[:, 1:], held_out[:, :-1], len(known)


def layers(net: nn.Module, x: torch.Tensor, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Features (n, d) by name: pooled as `compare` pools them, tokens by their mean."""
    found = extract(net.eval(), x.split(256), layers=list(names.values()), progress=False, pooling="mean")
    return {name: np.asarray(found[layer], dtype=np.float32) for name, layer in names.items()}


def features() -> dict[str, np.ndarray]:
    """Features of an early and a late layer of both networks of each task, by "task network layer"."""
    from sklearn.datasets import load_digits

    from cka_probe.distill.data import fashion_mnist

    found: dict[str, np.ndarray] = {}

    def add(task: str, network: str, of: dict[str, np.ndarray]) -> None:
        found.update({f"{task} {network} {layer}": x for layer, x in of.items()})

    train, test = fashion_mnist(channels=1)
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(train), generator=generator)[:20000].tolist()
    x, y = (torch.stack([torch.as_tensor(train[i][part]) for i in some]) for part in (0, 1))
    held_out = torch.stack([test[i][0] for i in range(SAMPLES)])
    for network, width in (("A", 8), ("B", 16)):
        net = convolutions(width, len(network))
        print("images", network, fit(net, x, y, 400, width), flush=True)
        add("images", network, layers(net, held_out, {"early": "0", "late": "7"}))

    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    for network, width in (("A", 64), ("B", 128)):
        net = perceptron(width, width)
        print("digits", network, fit(net, x[:900], y[:900], 1500, width), flush=True)
        add("digits", network, layers(net, x, {"early": "0", "late": "5"}))

    x, y, held_out, characters = texts()
    for network, depth in (("A", 4), ("B", 2)):
        torch.manual_seed(depth)
        net = Characters(characters, 64, depth)
        print("language", network, fit(net, x, y, 900, depth, 32), flush=True)
        add("language", network, layers(net, held_out, {"early": "blocks.0", "late": f"blocks.{depth - 1}"}))
    return found


def stored(path: Path) -> dict[str, np.ndarray]:
    """The features in the file; they are made first if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **features())
    with np.load(path) as archive:
        return dict(archive)
