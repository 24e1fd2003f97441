"""The loss between two minima of T7 (docs/theory.md), on the logits of the study's teacher.

    python benchmarks/study_signs.py        writes benchmarks/results/study_signs.csv; `make study` comes first

One axis of the teacher's logits of the test images goes from its sign to the other one, t = 1 to -1; the axes are the
eigenvectors of Z'Z, the largest first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cka_probe.atomic_write import atomic_write
from cka_probe.distill import LogitCKALoss

__all__ = ["path"]


def path(logits: Tensor, labels: Tensor, points: int = 201) -> pd.DataFrame:
    """Cross-entropy and both logit terms (weight 1), for the largest and the smallest axis.

    The mean over the classes is taken out of the logits first: softmax does not see it. The direction of equal logits,
    whose eigenvalue is then 0, is no axis.
    """
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :-1]
    lines = []
    for axis in (0, axes.shape[1] - 1):
        for t in np.linspace(1, -1, points):
            factors = torch.ones(axes.shape[1], dtype=torch.float64)
            factors[axis] = t
            moved = centred @ (axes * factors) @ axes.T
            terms = LogitCKALoss(1.0, 1.0).terms(moved, centred)
            cross = float(functional.cross_entropy(moved, labels))
            lines.append({"axis": axis + 1, "t": t, "cross_entropy": cross, **{k: float(v) for k, v in terms.items()}})
    return pd.DataFrame(lines)


def main() -> None:
    from study_runs import logits_of, parts, teacher_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="folder of the study")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "study_signs.csv")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _, _, test = parts("fashion", folder, 0, 10, augment=False)
    table = path(*logits_of(teacher_of("fashion", folder), test))
    atomic_write(options.output, table.to_csv(index=False, float_format="%.6g"))
    print(table[table["t"].isin([1, 0, -1])].to_string(index=False))


if __name__ == "__main__":
    main()
