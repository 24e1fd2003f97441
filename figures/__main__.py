"""Remake the figures: `python -m figures` all, `python -m figures corridor slack` some; with `--fresh`, train again."""

from __future__ import annotations

import argparse
import importlib
import shutil
import tempfile
import time
from pathlib import Path

import matplotlib as mpl

from figures.networks import CACHE
from figures.saving import FOLDER

# In the order of the README.
NAMES = (
    "block_structure",
    "two_seeds",
    "estimators",
    "corridor",
    "slack",
    "bounds_along_training",
    "centring_and_kernels",
    "teacher_student",
    "methods_table",
    "grams",
    "peers",
    "scaling",
    "detections",
    "coverage",
    "sign_minima",
    "study",
    "all_measures",
    "cka_and_mmd",
)

# Files of a figure alone, as patterns: its own runs, and the numbers that it is drawn from without training.
KEPT: dict[str, tuple[str, ...]] = {
    "block_structure": ("data/block_structure*", ".cache/block_structure_*"),
    "two_seeds": ("data/two_seeds.csv", "data/two_seeds_maps.csv"),
    "estimators": ("data/estimators.csv",),
    "corridor": ("data/corridor.csv",),
    "slack": ("data/slack.csv",),
    "bounds_along_training": ("data/bounds_along_training.csv",),
    "centring_and_kernels": ("data/centring_and_kernels.csv",),
    "teacher_student": ("data/teacher_student.csv",),
    "methods_table": ("data/methods.csv",),
    "grams": ("data/grams.npz",),
    "detections": ("data/detections.*", "data/detectors.csv", "data/segmenters.csv", ".cache/dense-*"),
    "all_measures": ("data/all_measures.csv",),
    "cka_and_mmd": ("data/cka_and_mmd.csv",),
}

# Figures from a table of benchmarks/results, or with runs of their own; the others share the networks of networks.py.
ALONE = {"peers", "scaling", "coverage", "sign_minima", "study", "block_structure", "detections"}


def make(name: str, folder: Path = FOLDER, fresh: bool = False) -> None:
    """Draw a figure. With `fresh`, without the files that it keeps; they come back if it cannot be made."""
    draw = importlib.import_module(f"figures.{name}").make
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        kept = [path for pattern in KEPT.get(name, ()) if fresh for path in folder.glob(pattern)]
        for number, path in enumerate(kept):
            path.rename(Path(aside, str(number)))
        made = None
        try:
            made = draw(folder)
        finally:
            if made is None:  # skipped, failed or stopped
                for number, path in enumerate(kept):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                    Path(aside, str(number)).rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; without names, all")
    parser.add_argument("--fresh", action="store_true", help="train the networks of these figures again")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"there is no figure {unknown[0]!r}. Choose from {', '.join(NAMES)}")
    mpl.use("Agg")
    names = options.names or NAMES
    if options.fresh and not set(names) <= ALONE:
        for network in CACHE.glob("*.safetensors"):
            network.unlink()
    started = time.perf_counter()
    for name in names:
        before = time.perf_counter()
        print(name, flush=True)
        make(name, fresh=options.fresh)
        print(f"  {time.perf_counter() - before:.0f} s", flush=True)
    print(f"All in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
