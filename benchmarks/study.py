"""Does RCKA beat KD on Fashion-MNIST? Train the students of every method, and keep each in a table as it ends.

    make study                                        one job; stop it at any time, and start it again later
    python benchmarks/study.py --jobs 2               two processes, one thread each: as many as there are idle cores
    python benchmarks/study.py --list                 the cells in their order, and which are finished
    python benchmarks/study.py --only teacher

A cell is one student: data set, number of images, method, weight, ramp, seed. Cells run in the order of `plan`, so that
a partial study is of use: the main rows of clothes, then of glyphs, then the weights (seed 0), the best one of each
method with the other seeds, and every weight of RCKA with them. Every finished cell is a line of
benchmarks/results/study.csv (--output), which is in the repository. Cells that are there are not run again: to go on,
start the same command, commit the table as it grows, then run `python benchmarks/study_tables.py` for the tables beside
it and `python -m figures study` for the figure.

All lines of one data set have the same teacher, which is in results/study_teachers. To begin anew, remove that folder
and the table: teachers are then trained first (24 epochs, an hour on an idle core, 2 minutes on a GPU), in runs/study
(--folder), which git ignores. The glyphs are drawn from the fonts of the machine, which must be those that their
teacher has learned from: the packages that docs/howto/data.md lists. On a machine with a GPU the cells run there, and
--jobs may be as large as the number of CPU cores.

Rules of the study. The teacher learns from all 60,000 training images. Students are resnet8 with one input channel, on
10,000 images (15 epochs) or 1,000 (60 epochs), batch 64, SGD with a cosine from 0.05, no augmentation; a seed chooses
images, first weights and order. The last epoch counts. Weights are chosen by the accuracy on 5,000 training images that
the students do not see (column validation), never on the test images.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import sys
import time
import traceback
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

from study_methods import METHODS
from study_probe import PROBED
from study_runs import FIELDS, Cell, prepare, run_cell
from study_tables import chosen

RESULTS = Path(__file__).parent / "results" / "study.csv"
SEEDS = range(5)
MAIN = ("ce", "kd", "rcka", "dist", "kd_rcka", "lcka", "dkd", "fcka", "sp")
EXTRA = ("rcka_signs", "rcka_soft", "kd_to_rcka", "rcka_even", "rcka_even_signs")


def plan(known: dict[Cell, float]) -> list[Cell]:
    """Every cell of the study, in the order in which they run.

    ``known`` has the validation accuracy of each finished cell. Once all weights of seed 0 are known, the best one of
    each method comes next, for the other seeds.
    """
    found: list[Cell] = []

    def main_rows(data: str, images: int, seeds: Iterable[int]) -> None:
        for seed in seeds:
            for name in MAIN:
                found.append(Cell(data, images, name, METHODS[name].default, False, seed))
                if name == "rcka":  # the question of T7: does the ramp find the right minimum?
                    found.extend(Cell(data, images, name, 15.0, ramp, seed) for ramp in (True, False))
                    # What T7 says to try, as it stands and with the same weight on the features.
                    tried = ("rcka_signs", "rcka_even_signs")
                    found.extend(Cell(data, images, ours, 15.0, True, seed) for ours in tried)

    def weights(images: int, names: Iterable[str], seeds: Iterable[int]) -> None:
        found.extend(
            Cell("fashion", images, name, round(weight, 4), ramp, seed)
            for seed in seeds
            for name in names
            for ramp in (False, True)[: 1 + METHODS[name].ramp]
            for weight in METHODS[name].weights
        )

    def chosen_rows(data: str, images: int) -> None:
        best = chosen(known, data, images)
        found.extend(cell._replace(seed=seed) for seed in SEEDS[1:] for cell in best)

    main_rows("fashion", 10_000, SEEDS[:2])
    main_rows("fashion", 1_000, SEEDS[:3])
    main_rows("fashion", 10_000, SEEDS[2:])
    main_rows("fashion", 1_000, SEEDS[3:])
    found.extend(Cell("glyphs", 10_000, name, 1.0, False, seed) for seed in SEEDS[:3] for name in PROBED)
    main_rows("glyphs", 10_000, SEEDS[:3])
    for images in (10_000, 1_000):
        weights(images, (*EXTRA, *MAIN), SEEDS[:1])
        chosen_rows("fashion", images)
        weights(images, ["rcka"], SEEDS)
    main_rows("glyphs", 10_000, SEEDS[3:])
    found.extend(Cell("glyphs", 10_000, name, 1.0, False, seed) for seed in SEEDS[3:] for name in PROBED)
    return list(dict.fromkeys(found))


def key(line: dict[str, str]) -> Cell:
    """The cell of a line of the table."""
    return Cell(
        line["data"], int(line["images"]), line["method"], float(line["weight"]), line["ramp"] == "True",
        int(line["seed"]),
    )  # fmt: skip


def finished(table: Path) -> dict[Cell, float]:
    """The cells in the table, with their accuracies on the validation images."""
    if not table.is_file():
        return {}
    with table.open(newline="") as file:
        return {key(line): float(line["validation"]) for line in csv.DictReader(file)}


def append(table: Path, line: dict[str, object]) -> None:
    """Add a line to the table; two processes may do so at once."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(line)


def work(table: Path, folder: Path) -> None:
    """Run the cells that are neither finished nor in work in another process. A lock file marks a cell in work."""
    import torch

    torch.set_num_threads(1)
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    failed: set[Cell] = set()
    while True:
        known = finished(table)
        for cell in plan(known):
            if cell in known or cell in failed:
                continue
            with (locks / "_".join(map(str, cell))).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if cell in finished(table):  # by another process, since the table was read
                    continue
                started = time.perf_counter()
                try:
                    line = run_cell(cell, folder)
                except Exception:  # the other cells go on, and the next start tries this one again
                    traceback.print_exc()
                    failed.add(cell)
                    break
                append(table, line)
                scores = f"validation {line['validation']:.2f}, test {line['test']:.2f}"
                print(f"{time.strftime('%H:%M')} {cell}: {scores}, {time.perf_counter() - started:.0f} s", flush=True)
                break  # the next cell may depend on this one
        else:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the table")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="teachers and scratch files")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")
    parser.add_argument(
        "--only", choices=["teacher", "glyphs"], help="train that teacher (of clothes, or of glyphs) and stop"
    )
    options = parser.parse_args()
    table, folder = options.output.resolve(), options.folder.resolve()
    if options.list:
        done = finished(table)
        for cell in plan(done):
            print("done" if cell in done else "    ", *cell)
        print(f"{len(done)} of {len(plan(done))} cells are finished")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    folder.mkdir(parents=True, exist_ok=True)
    if options.only:
        prepare("fashion" if options.only == "teacher" else "glyphs", folder, progress=sys.stderr.isatty())
        return
    prepare("fashion", folder, progress=sys.stderr.isatty())
    context = get_context("spawn")
    workers = [context.Process(target=work, args=(table, folder)) for _ in range(options.jobs - 1)]
    for worker in workers:
        worker.start()
    work(table, folder)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
