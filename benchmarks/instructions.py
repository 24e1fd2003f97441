"""Count the instructions of one pass of compare() beside the forward passes alone, with valgrind's callgrind.

    python benchmarks/instructions.py resnet18                 a quarter of an hour: a pass is a thousand times slower
    python benchmarks/instructions.py lstm --tool cka_probe    one tool

A clock on a busy or virtual machine is off by a tenth and more; the number of instructions hardly changes. It is no
time: a product of matrices takes few instructions for its time, and Python takes many. The cases are those of
benchmarks/compare.py, on one thread. Each tool has a process of its own, in which a pass over eight samples comes first
and is not counted. Results go to benchmarks/results/instructions.csv, with the share of each library.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from cases import CASES
from tables import write
from tools import TOOLS, available, run

RESULTS = Path(__file__).parent / "results" / "instructions.csv"
COLUMNS = (
    *("case", "tool", "instructions", "times_floor"),
    *("share_python", "share_torch", "share_generated", "share_rest"),
)
PARTS = {"python": r"libpython|/bin/python", "torch": r"/torch/lib/(?!libgomp)|/torch/_C", "rest": r"\.so|\.bin"}
"""Names of libraries by part. What has no file is "generated": the code that oneDNN writes while it runs."""


def one_pass(name: str, case_name: str) -> None:
    """Run in a process under callgrind, which counts nothing until it is told to."""
    torch.set_num_threads(1)
    available()
    case = CASES[case_name]()
    run(name, replace(case, images=case.first(8), batch=4))
    control("on")
    run(name, case)
    control("off")
    sys.stdout.flush()
    os._exit(0)  # the end of the interpreter takes minutes under valgrind


def control(state: str) -> None:
    subprocess.run(["callgrind_control", "-i", state, str(os.getpid())], check=True, capture_output=True)


def count(name: str, case_name: str, peers: str | None) -> Counter[str]:
    """Instructions by part of one pass of a tool."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        command += [sys.executable, __file__, case_name, "--one", name, *(["--peers", peers] if peers else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        return by_part(out.read_text())


def by_part(text: str) -> Counter[str]:
    """Sum the own cost of each function by its library, from a file of callgrind."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    library, skip = "", False
    for line in text.splitlines():
        if match := re.match(r"(c?ob)=\((\d+)\)(?: (.*))?$", line):
            kind, number, name = match.groups()
            names.setdefault(number, name or "???")
            if kind == "ob":
                library = names[number]
        elif line.startswith("calls="):
            skip = True  # the next line is the cost of the function that is called
        elif re.match(r"[\d+*-]", line):
            if not skip:
                found[part_of(library)] += int(line.split()[1])
            skip = False
    return found


def part_of(library: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, library)), "generated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--tool", choices=TOOLS, action="append", help="forward alone and cka_probe when left out")
    parser.add_argument("--peers", help="folder with one folder for each peer, or with all of them")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers:
        folder = Path(options.peers).resolve()
        sys.path += [str(folder), *(str(child) for child in folder.iterdir() if child.is_dir())]
    if options.one:
        one_pass(options.one, options.case)
    if shutil.which("callgrind_control") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    torch.set_num_threads(1)  # as in the processes; for the column of the table
    title = CASES[options.case]().title
    rows = []
    if options.output.is_file():
        with options.output.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["case"] != title]
    floor = 0
    for name in options.tool or ["forward alone", "cka_probe"]:
        parts = count(name, options.case, options.peers)
        total = sum(parts.values())
        floor = total if name == "forward alone" else floor
        shares = {share: f"{parts[share.removeprefix('share_')] / total:.3f}" for share in COLUMNS[4:]}
        times = f"{total / floor:.3f}" if floor else ""
        rows.append({"case": title, "tool": name, "instructions": total, "times_floor": times, **shares})
        print(f"{name}: {total:,} instructions, {times} x the forward passes, {shares}", flush=True)
        write(options.output, COLUMNS, rows)


if __name__ == "__main__":
    main()
