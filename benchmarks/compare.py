"""Measure compare() and other tools beside the floor, the forward passes alone: time, peak memory and error.

    python benchmarks/compare.py                        everything, about twenty minutes on two quiet cores
    python benchmarks/compare.py --quick                one small case, to see that it runs
    python benchmarks/compare.py --case resnet18        one case
    python benchmarks/compare.py --memory               peaks of memory again; the times of the table stay
    python benchmarks/compare.py --peers FOLDER         also look for the tools here (pip install --target FOLDER ...)

Rounds are interleaved: in each round, every tool goes over the same batches once. Times are medians over rounds.
"times floor" is the median of the ratios within a round, with their range; a busy machine disturbs it least. Each peak
of memory is measured in a process of its own, above what the process held after a pass over eight samples, which loads
the tool's code. An error is the largest one over all pairs of layers, against float64 on activations copied inside the
hook. A tool that keeps only the last call of a layer is compared with that call. A tool that cannot run is listed with
its error. Results go to benchmarks/results/compare.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from accuracy import errors, truth
from cases import CASES, Case, Table
from memory import peak_in_a_process, peak_of
from tables import on_page, save_csv, version, write
from tools import TOOLS, available, run

from cka_probe.atomic_write import atomic_write

RESULTS = Path(__file__).parent / "results" / "compare.csv"
PAGE, SCRIPT = Path(__file__).parents[1] / "docs" / "peers.md", "benchmarks/compare.py"

TOO_LONG = 12.0
"""A tool whose first pass takes more seconds is not run again; that one time is listed."""

COLUMNS = (
    *("case", "tool", "version", "layers", "samples", "batch", "rounds", "seconds", "seconds_least", "times_floor"),
    *("times_floor_range", "peak_mib", "peak_times_floor", "largest_error", "cells_off_by_0.001", "note"),
)


def peak_of_one(name: str, case: Case) -> float:
    """Peak memory of one pass in MiB, above what the process held before. Run it in a process of its own."""
    available()  # imports are not part of the pass
    # This small pass loads what a tool imports late.
    run(name, replace(case, images=case.first(8), batch=4))
    return peak_of(lambda: run(name, case))[1]


def peak_memory(name: str, case_name: str, options: argparse.Namespace) -> float | None:
    arguments = ["--memory-of", name, "--case", case_name, "--threads", str(options.threads)]
    return peak_in_a_process(__file__, *arguments, *(["--peers", options.peers] if options.peers else []))


def measure(case_name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    case = CASES[case_name]()
    print(f"\n{case.title}, {case.samples // case.batch} batches")
    true = truth(case)
    tables: dict[str, Table | None] = {}
    times: dict[str, list[float]] = {}
    failed = available()
    once: set[str] = set()
    for name in TOOLS:  # the first pass only warms up
        if name in failed:
            continue
        try:
            seconds, tables[name] = run(name, case)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        else:
            times[name] = []
            if seconds > TOO_LONG and name not in ("forward alone", "cka_probe", "channels_last"):
                times[name] = [seconds]
                once.add(name)
    order = [name for name in times if name not in once]
    for place in range(options.rounds):
        for name in order[place % len(order) :] + order[: place % len(order)]:
            times[name].append(run(name, case)[0])
    base = times["forward alone"]
    floor_peak = peak_memory("forward alone", case_name, options)
    found = []
    for name, (_, package, _) in TOOLS.items():
        row: dict[str, Any] = {
            "case": case.title,
            "tool": name,
            "version": version(package),
            "layers": f"{len(case.layers_x)} x {len(case.layers_y)}",
            "samples": case.samples,
            "batch": case.batch,
        }
        if name in failed:
            found.append({**row, "note": failed[name]})
            continue
        ratios = [t / b for t, b in zip(times[name], base, strict=False)]
        if name in once:
            ratios = [times[name][0] / statistics.median(base)]
        memory = floor_peak
        if name != "forward alone":
            memory = None if name in once else peak_memory(name, case_name, options)
        row |= {
            "rounds": len(times[name]),
            "seconds": f"{statistics.median(times[name]):.4f}",
            "seconds_least": f"{min(times[name]):.4f}",
            "times_floor": f"{statistics.median(ratios):.3f}",
            "times_floor_range": f"{min(ratios):.3f} to {max(ratios):.3f}",
            "peak_mib": "" if memory is None else f"{memory:.1f}",
            "peak_times_floor": "" if memory is None or not floor_peak else f"{memory / floor_peak:.2f}",
        }
        table = tables[name]
        if table is not None:
            worst, wrong, cells = errors(table, true)
            row |= {"largest_error": f"{worst:.1e}", "cells_off_by_0.001": f"{wrong} of {cells}"}
        if name in once:
            row["note"] = "one pass only, and no peak: it takes too long"
        found.append(row)
    show(found)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':15}{'seconds':>9}{'x floor':>9}{'peak MiB':>10}{'x floor':>9}{'error':>9}  off by > 0.001")
    for row in rows:
        if "seconds" not in row:
            print(f"{row['tool']:15}{row['note']}")
            continue
        print(
            f"{row['tool']:15}{row['seconds']:>9}{row['times_floor']:>9}{row['peak_mib']:>10}"
            f"{row['peak_times_floor']:>9}{row.get('largest_error', ''):>9}  {row.get('cells_off_by_0.001', '')}"
            f"  {row.get('note', '')}"
        )


OURS = {"cka_probe": "**cka_probe**", "channels_last": "**cka_probe**, channels_last"}


def memory_again(rows: list[dict[str, str]], options: argparse.Namespace) -> list[dict[str, str]]:
    """The rows of the table with new peaks of the floor and of cka_probe; the note says so."""
    names = {CASES[name]().title: name for name in options.case or CASES}
    floor = float("nan")
    for row in rows:
        if row["case"] in names and row["tool"] in ("forward alone", "cka_probe", "channels_last") and row["peak_mib"]:
            peak = peak_memory(row["tool"], names[row["case"]], options)
            assert peak is not None
            floor = peak if row["tool"] == "forward alone" else floor
            row |= {"peak_mib": f"{peak:.1f}", "peak_times_floor": f"{peak / floor:.2f}"}
            row["note"] = f"memory of {date.today().isoformat()}"
            print(row["case"], row["tool"], row["peak_mib"], row["peak_times_floor"], flush=True)
    return rows


def page_text(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown, of rows as they are in the CSV."""
    lines = ["| case | tool | time | memory | largest error | cells off by 0.001 |", "|---|---|---|---|---|---|"]
    case = ""
    for row in rows:
        if row["tool"] == "channels_last" and not row.get("seconds"):
            continue  # not of images
        tool, title = row["tool"], "" if row["case"] == case else row["case"].replace(" x ", " × ")
        case = row["case"]
        name = OURS.get(tool, f"{tool} {row['version']}".strip())
        if tool == "forward alone":
            cells = [f"*{tool}*", f"*{float(row['seconds']):.2f} s*", f"*{float(row['peak_mib']):.0f} MiB*", "", ""]
        elif not row.get("seconds"):
            cells = [name, "failed", "", "", ""]
        else:
            memory = f"{row['peak_times_floor']} ×" if row["peak_times_floor"] else ""
            wrong = row.get("cells_off_by_0.001", "").replace("of", "/")
            cells = [name, f"{float(row['times_floor']):.2f} ×", memory, row.get("largest_error", ""), wrong]
        lines.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be given several times")
    parser.add_argument("--quick", action="store_true", help="one small case, three rounds, nothing written")
    parser.add_argument("--memory", action="store_true", help="measure only the memory, for the table that is there")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--peers", help="folder with one folder for each peer, or with all of them")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--memory-of", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peers:
        folder = Path(options.peers).resolve()
        sys.path += [str(folder), *(str(child) for child in folder.iterdir() if child.is_dir())]
    if options.memory_of:
        print(json.dumps(peak_of_one(options.memory_of, CASES[options.case[0]]())))
        return
    if options.memory:
        with options.output.open(newline="") as file:
            rows = memory_again(list(csv.DictReader(file)), options)
        save_csv(options.output, list(rows[0]), rows)
        if options.output == RESULTS:
            atomic_write(PAGE, on_page(PAGE.read_text(), SCRIPT, page_text(rows)))
        return
    if options.quick:
        options.rounds = 3
        measure("quick", options)
        return
    rows = []
    for name in options.case or [name for name in CASES if name != "quick"]:
        rows += measure(name, options)
        write(options.output, COLUMNS, rows)  # a run that is stopped leaves the cases that are done
    print(f"\nwritten to {options.output}")
    if options.output == RESULTS:
        atomic_write(PAGE, on_page(PAGE.read_text(), SCRIPT, page_text(rows)))


if __name__ == "__main__":
    main()
