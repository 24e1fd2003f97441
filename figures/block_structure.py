"""The block structure of a deep network: CKA of every layer of a network with every other layer of it.

Nguyen, Raghu and Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021: the layers of a network that
is large for its data set fall into few blocks, within which they are nearly alike. Two networks that differ in depth
only are trained on the same 1,000 images of Fashion-MNIST: 14 minutes on one core; a run that was stopped goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import TensorDataset

import cka_probe as cp
from cka_probe.distill import CosineDecay, distill, fashion_mnist
from cka_probe.distill.models import build
from cka_probe.plotting import plot_heatmap_grid
from figures.networks import CACHE
from figures.saving import FOLDER, kept, save


class Training(NamedTuple):
    """Networks, and how long they learn from how many images of how many pixels."""

    networks: tuple[str, ...] = ("resnet20", "resnet110")
    images_per_class: int = 100
    size: int = 14
    epochs: int = 60
    compared: int = 1000


def make(
    folder: Path = FOLDER,
    *,
    cache: Path = CACHE,
    training: Training = Training(),  # noqa: B008
) -> pd.DataFrame | None:
    table = kept(folder, "block_structure")
    files = [folder / "data" / f"block_structure_{name}.npz" for name in training.networks]
    if table is None or not all(file.is_file() for file in files):
        try:
            rows = [train(name, file, cache, training) for name, file in zip(training.networks, files, strict=True)]
        except FileNotFoundError as error:
            print(f"  skipped: {error}", flush=True)
            return None
        table = pd.DataFrame(rows)
    results = {name: cp.SimilarityMatrix.load(file) for name, file in zip(training.networks, files, strict=True)}
    panels = {f"{name}: {len(result.rows)} layers": result for name, result in results.items()}
    axes = plot_heatmap_grid(panels, columns=len(panels), annotate=False, layer_labels="depth")
    for ax, result in zip(axes, results.values(), strict=True):
        ticks = range(0, len(result.rows), 20 if len(result.rows) < 150 else 100)
        ax.set(xlabel="layer", ylabel="layer" if ax is axes[0] else "", xticks=ticks, yticks=ticks)
        ax.tick_params("x", rotation=0)
    save(folder, "block_structure", axes[0].figure, block_structure=table)
    return table


def train(name: str, file: Path, cache: Path, training: Training) -> dict[str, object]:
    """Train a network, write the CKA of its layers to the file, and return its accuracy."""
    few, _ = fashion_mnist(train_per_class=training.images_per_class, size=training.size, channels=1, augment=True)
    _, test = fashion_mnist(size=training.size, channels=1)
    samples = [test[i] for i in range(training.compared)]
    shown = TensorDataset(
        torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])
    )
    torch.manual_seed(0)
    network = build(name, num_classes=10, in_channels=1)
    result = distill(
        None,
        network,
        few,
        shown,
        epochs=training.epochs,
        batch_size=50,
        learning_rate=0.05,
        schedule=CosineDecay(warmup=5),
        clip_norm=5.0,
        channels_last=True,
        output_dir=cache / f"block_structure_{name}_{training.epochs}",
        progress=False,
    )
    # A skip connection without a projection is an empty module: the layer before it once more.
    layers = {"layers": "leaves", "exclude": "**.downsample"}
    compared = cp.compare(network, network, shown.tensors[0].split(200), names=(name, name), progress=False, **layers)
    # Half precision: the file is small, and a difference of 0.0005 cannot be seen.
    values = compared.values.astype(np.float16).astype(np.float64)
    meta = compared.meta | {"data": "Fashion-MNIST", "values": "rounded to float16"}
    file.parent.mkdir(parents=True, exist_ok=True)
    cp.SimilarityMatrix(values, compared.rows, compared.columns, notes=compared.notes, meta=meta).save(file)
    accuracy = result.history.iloc[-1]
    return {"network": name, "layers": len(compared.rows), "epochs": training.epochs, "images": len(few),
            "train_accuracy": accuracy["train_accuracy"], "test_accuracy": accuracy["test_accuracy"],
            "share_above_0.9": float((compared.values > 0.9).mean())}  # fmt: skip
