"""Read measured tables; write a picture as PNG and PDF, and its numbers as CSV in data/."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cka_probe.atomic_write import atomic_write

FOLDER = Path(__file__).parent
BENCHMARKS = FOLDER.parent / "benchmarks" / "results"


def measured(source: Path) -> pd.DataFrame | None:
    """The table of a benchmark, or None after a message if it was not measured yet."""
    if source.is_file():
        return pd.read_csv(source)
    print(f"  skipped: {source.name} does not exist. `make bench` measures it.", flush=True)
    return None


def kept(folder: Path, name: str) -> pd.DataFrame | None:
    """The numbers of a figure that was made before, or None; `python -m figures --fresh NAME` computes them again."""
    path = folder / "data" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def save(folder: Path, name: str, figure: Figure, **tables: pd.DataFrame) -> None:
    """Write name.png, name.pdf and data/TABLE.csv for each table, and close the figure."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{name}.png", lambda file: figure.savefig(file, format="png", dpi=220))
    # Without the date, so that equal numbers give equal files.
    options = {"metadata": {"CreationDate": None}}
    atomic_write(folder / f"{name}.pdf", lambda file: figure.savefig(file, format="pdf", **options))
    plt.close(figure)
    for part, table in tables.items():
        atomic_write(data / f"{part}.csv", table.to_csv(index=False, float_format="%.6g"))
    print(f"  {name}.png, {name}.pdf, data/{', '.join(f'{part}.csv' for part in tables)}", flush=True)
