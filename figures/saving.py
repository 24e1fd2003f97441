"""Where pictures and their numbers go: PNG and PDF side by side, the table beside them in data/."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
BENCHMARKS = FOLDER.parent / "benchmarks" / "results"


def save(folder: Path, name: str, figure: Figure, **tables: pd.DataFrame) -> None:
    """Write name.png, name.pdf and one CSV for each table; the first table is named as the picture."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=160, bbox_inches="tight")
    # Without the date, so that equal numbers give equal files.
    figure.savefig(folder / f"{name}.pdf", bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)
    for part, table in tables.items():
        table.to_csv(data / f"{part}.csv", index=False, float_format="%.6g")
    print(f"  {name}.png, {name}.pdf, data/{', '.join(f'{part}.csv' for part in tables)}", flush=True)
