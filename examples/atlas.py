"""Train 60 small networks on handwritten digits and draw the map of what they see alike.

    python examples/atlas.py                  80 seconds on one core; writes atlas/map.png, tree.png, table.csv
    python examples/atlas.py --networks 12    a quick look

The networks differ in width, depth, the classes that they were trained on, training time and seed. Each is trained
here, its signature on the same 512 test images goes into an atlas, and the distances between whole networks are drawn
as a map and as a tree. PERMANOVA says how much of the distances each property explains.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn

import cka_probe as cp
from cka_probe.plotting import plot_dendrogram, plot_map

mpl.use("Agg")
TEST = 512


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 64) of mean 0 and labels, in a fixed random order."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = torch.tensor(bunch.data[order] / 16, dtype=torch.float32)
    return images - images.mean(), torch.tensor(bunch.target[order])


def network(width: int, depth: int) -> nn.Sequential:
    """``depth`` hidden layers of ``width`` units, and ten answers."""
    sizes = [64, *[width] * depth]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def trained(width: int, depth: int, classes: str, epochs: int, seed: int) -> nn.Sequential:
    """A network after ``epochs`` epochs on the digits 0 to 4, 5 to 9, or all."""
    torch.manual_seed(seed)
    images, labels = (part[TEST:] for part in digits())
    chosen = {"0-4": labels < 5, "5-9": labels >= 5, "all": labels >= 0}[classes]
    images, labels = images[chosen], labels[chosen]
    net = network(width, depth)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimiser.step()
    return net.eval()


def settings(count: int) -> list[dict[str, object]]:
    """The first ``count`` of a shuffled grid of settings, so that the properties do not go together."""
    grid = list(product((16, 64, 256), (2, 4), ("0-4", "5-9", "all"), (1, 5, 25), (0, 1)))
    order = np.random.default_rng(1).permutation(len(grid))
    names = ("width", "depth", "classes", "epochs", "seed")
    return [dict(zip(names, grid[i], strict=True)) for i in order[:count]]


def main(networks: int = 60, output: Path = Path("atlas"), n_jobs: int = 1) -> pd.DataFrame:
    """Make the map; returns the table of what explains the distances."""
    output.mkdir(parents=True, exist_ok=True)
    chosen = settings(networks)
    names = ["w{width} d{depth} {classes} e{epochs} s{seed}".format(**one) for one in chosen]
    batches = list(digits()[0][:TEST].split(128))
    loaders = {name: partial(trained, **one) for name, one in zip(names, chosen, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        made = cp.signatures(loaders, batches, Path(folder) / "signatures", n_jobs=n_jobs, layers="**")
        assert (made["state"] == "made").all(), made[made["state"] != "made"]
        atlas = cp.Atlas(Path(folder) / "atlas")
        found = {one.name: one for one in map(cp.load_signature, (Path(folder) / "signatures").iterdir())}
        for name, one in zip(names, chosen, strict=True):
            atlas.add(found[name], metadata=one)
        distances = atlas.distances(names)
        table = atlas.to_frame().loc[names]

    rows = []
    for name in ("width", "depth", "classes", "epochs", "seed"):
        result = cp.permanova(distances, table[name].tolist())
        rows.append({"property": name, "share of the squared distances": result.r2, "p": result.p_value})
    explained = pd.DataFrame(rows).sort_values("share of the squared distances", ascending=False, ignore_index=True)
    print(explained.round(3).to_string(index=False))
    explained.to_csv(output / "table.csv", index=False)

    ax = plot_map(
        distances,
        colour=table["classes"].tolist(),
        marker=table["epochs"].tolist(),
        colour_label="digits",
        marker_label="epochs",
    )
    ax.figure.savefig(output / "map.png", dpi=200)
    plot_dendrogram(distances, colour=table["classes"].tolist()).figure.savefig(output / "tree.png", dpi=150)
    return explained


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("atlas"))
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    given = parser.parse_args()
    main(given.networks, given.output, given.jobs)
