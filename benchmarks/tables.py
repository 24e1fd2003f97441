"""Tables of results as CSV, with the machine, the versions and the command in every row."""

from __future__ import annotations

import csv
import io
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cka_probe.atomic_write import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """Name of the processor, or its architecture if the system does not give a name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def command() -> str:
    """The command of this run, for the column ``command``: without ``--output``, and without folders of the machine."""
    given = iter(sys.argv[1:])
    kept = []
    for word in given:
        if word == "--output":
            next(given, None)
        elif not word.startswith("--output="):
            kept.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def machine() -> dict[str, str]:
    """The machine, the versions and the command of this run."""
    import torch
    import torchvision

    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "date": date.today().isoformat(),
        "command": command(),
    }


def save_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, the whole file or none."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, stream.getvalue())


def write(path: Path, columns: Iterable[str], rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV; each row also names the machine, the versions and the command."""
    place = machine()
    save_csv(path, [*columns, *place], [{**row, **place} for row in rows])


def write_frame(path: Path, table: pd.DataFrame) -> None:
    """Write a DataFrame as CSV; each row also names the machine and the command."""
    import torch

    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, table.assign(machine=machine, command=command()).to_csv(index=False))


def on_page(page: str, script: str, text: str) -> str:
    """The page with the lines written anew that ``script`` writes into it, which two comments enclose.

    Raises
    ------
    ValueError
        If the page does not have the comments.
    """
    first, last = f"<!-- {script} writes the lines from here -->\n", "<!-- to here -->\n"
    before, found, rest = page.partition(first)
    _, also, after = rest.partition(last)
    if not (found and also):
        raise ValueError(f"The page has no lines of {script}: {first.strip()} ... {last.strip()}")
    return f"{before}{first}\n{text}\n{last}{after}"
