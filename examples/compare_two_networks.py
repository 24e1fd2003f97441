"""Compare every block of one network with every block of another and draw the heatmap.

python examples/compare_two_networks.py [--output similarity]

Replace `two_networks` and `batches` with your own; the rest stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp
from cka_probe.distill import digits
from cka_probe.distill.models import build


def two_networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return build("resnet20", num_classes=10), build("resnet8", num_classes=10)


def batches() -> DataLoader:
    _, images = digits(size=32)
    return DataLoader(images, batch_size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("similarity"), help="name of the .npz and .png")
    path = parser.parse_args().output
    mpl.use("Agg")

    model_x, model_y = two_networks()
    result = cp.compare(model_x, model_y, batches(), layers=["conv1", "layer?.?", "fc"])
    print(result)
    for note in result.notes:
        print("note:", note)

    result.save(path.with_suffix(".npz"))
    result.plot().figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")

    # Later, without the models: the values as a DataFrame, with their 95 % intervals.
    saved = cp.SimilarityMatrix.load(path.with_suffix(".npz"))
    low, high = saved.interval(0.95)
    print(saved.to_frame().round(2))
    print(f"widest interval: {(high - low).max():.3f}")


if __name__ == "__main__":
    main()
