"""Remake the figures: `python -m figures` all, `python -m figures corridor slack` some; `--fresh` trains again."""

from __future__ import annotations

import argparse
import importlib
import shutil
import time

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

# Numbers from which the figures are drawn without training; --fresh deletes them.
KEPT = (
    "block_structure.csv",
    "two_seeds.csv",
    "two_seeds_maps.csv",
    "corridor.csv",
    "slack.csv",
    "estimators.csv",
    "bounds_along_training.csv",
    "cka_and_mmd.csv",
    "centring_and_kernels.csv",
    "teacher_student.csv",
    "methods.csv",
    "grams.npz",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; without names, all")
    parser.add_argument("--fresh", action="store_true", help="train the networks again")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"there is no figure {unknown[0]!r}. Choose from {', '.join(NAMES)}")
    mpl.use("Agg")
    if options.fresh:
        shutil.rmtree(CACHE, ignore_errors=True)
        for name in KEPT:
            (FOLDER / "data" / name).unlink(missing_ok=True)
    started = time.perf_counter()
    for name in options.names or NAMES:
        before = time.perf_counter()
        if not (FOLDER / f"{name}.py").is_file():
            print(f"{name}\n  skipped: figures/{name}.py does not exist", flush=True)
            continue
        print(name, flush=True)
        importlib.import_module(f"figures.{name}").make()
        print(f"  {time.perf_counter() - before:.0f} s", flush=True)
    print(f"All in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
