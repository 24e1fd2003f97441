"""compare() beside its peers and the floor, the forward passes alone: time, peak memory and error.

    python benchmarks/compare.py                        everything, about six minutes on two quiet cores
    python benchmarks/compare.py --quick                one small case, to see that it runs
    python benchmarks/compare.py --case resnet18        one case
    python benchmarks/compare.py --peers FOLDER         also look for the peers here (pip install --target FOLDER ...)

Rounds are interleaved: in each, every tool goes over the same batches once. Times are medians, and "times floor" is the
median of the ratios within a round, which a busy machine disturbs least. Peaks of memory are of a process of its own
for each tool, above what it held after a pass over eight samples, which loads its code. Errors are the largest over all
pairs of layers against float64 on activations taken the moment they are there; a peer that sees the last call of a
layer only is held against that call. A peer that cannot run is listed with what it said. Results go to
benchmarks/results/compare.csv.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RESULTS = Path(__file__).parent / "results" / "compare.csv"
TOO_LONG = 12.0
"""Seconds of the first pass after which a tool is not run again; its one time is listed."""


# --- the cases -----------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """Two networks (or one twice), the layers to compare by name, and a loader of images."""

    title: str
    model_x: nn.Module
    model_y: nn.Module
    layers_x: list[str]
    layers_y: list[str]
    images: torch.Tensor
    batch: int

    def loader(self, *, targets: bool = True) -> DataLoader[Any]:
        """The images in batches, with or without targets."""
        parts = (self.images, torch.zeros(len(self.images), dtype=torch.long)) if targets else (self.images,)
        return DataLoader(TensorDataset(*parts), batch_size=self.batch)


def leaves(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if name and not list(module.children())]


def images(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def seeded(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **arguments).eval()


def resnet18() -> Case:
    net = seeded("resnet18")
    layers = [name for name in leaves(net) if ".conv" in name or name in ("conv1", "fc")]
    return Case("ResNet-18 with itself, 18 layers, 32 x 32, batch 64", net, net, layers, layers, images(256, 32), 64)


def resnet50() -> Case:
    net = seeded("resnet50")
    layers = [name for name, module in net.named_modules() if type(module).__name__ == "Bottleneck"]
    return Case("ResNet-50 with itself, 16 blocks, 224 x 224, batch 16", net, net, layers, layers, images(32, 224), 16)


def vit_tiny() -> Case:
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    ).eval()
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    return Case("ViT-tiny with itself, 12 blocks, 224 x 224, batch 32", net, net, layers, layers, images(64, 224), 32)


def many_layers() -> Case:
    x, y = seeded("resnet18"), seeded("resnet34")
    title = f"ResNet-18 x ResNet-34, all {len(leaves(x)) + len(leaves(y))} leaves, 32 x 32, batch 64"
    return Case(title, x, y, leaves(x), leaves(y), images(256, 32), 64)


def quick() -> Case:
    net = seeded("resnet18")
    layers = ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]
    return Case("ResNet-18 with itself, 6 layers, 32 x 32, batch 16", net, net, layers, layers, images(32, 32), 16)


CASES = {"resnet18": resnet18, "resnet50": resnet50, "vit_tiny": vit_tiny, "many_layers": many_layers, "quick": quick}


# --- the tools -----------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """Similarities by the names of rows and columns."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray


def floor(case: Case) -> None:
    """The forward passes alone; a network that is compared with itself runs once."""
    with torch.no_grad():
        for batch, _ in case.loader():
            case.model_x(batch)
            if case.model_y is not case.model_x:
                case.model_y(batch)


def ours(case: Case) -> Table:
    import cka_probe as cp

    result = cp.compare(
        case.model_x, case.model_y, case.loader(), layers=case.layers_x, layers_y=case.layers_y, progress=False
    )
    return Table(list(result.rows), list(result.columns), result.values)


def torch_cka(case: Case) -> Table:
    from torch_cka import CKA

    tool = CKA(case.model_x, case.model_y, "x", "y", case.layers_x, case.layers_y, device="cpu")
    tool.compare(case.loader())
    return Table(list(tool.model1_features), list(tool.model2_features), tool.hsic_matrix.detach().numpy())


def pytorch_cka(case: Case) -> Table:
    from cka import compute_cka

    (values,) = compute_cka(
        case.model_x,
        case.model_y,
        case.loader(),
        layers=case.layers_x,
        model2_layers=case.layers_y,
        device="cpu",
        progress=False,
    )
    return Table(case.layers_x, case.layers_y, values.numpy())


def cka_pytorch(case: Case) -> Table:
    from cka_pytorch import CKACalculator

    tool = CKACalculator(case.model_x, case.model_y, case.layers_x, case.layers_y, verbose=False)
    values = tool.calculate_cka_matrix(case.loader(), num_epochs=1)
    return Table(tool.hook_manager1.module_names, tool.hook_manager2.module_names, values.numpy())


def ckatorch(case: Case) -> Table:
    from ckatorch import CKA

    tool = CKA(case.model_x, case.model_y, case.layers_x, case.layers_y, "x", "y")
    values = tool(case.loader(targets=False), epochs=1)
    return Table(list(tool.first_features), list(tool.second_features), values.numpy())


TOOLS: dict[str, tuple[Callable[[Case], Table | None], str, str]] = {
    # name: (what runs it, its distribution, its module)
    "forward alone": (floor, "torch", "torch"),
    "cka_probe": (ours, "cka-probe", "cka_probe.comparison"),
    "pytorch-cka": (pytorch_cka, "pytorch-cka", "cka"),
    "cka-pytorch": (cka_pytorch, "cka-pytorch", "cka_pytorch"),
    "torch_cka": (torch_cka, "torch-cka", "torch_cka"),
    "ckatorch": (ckatorch, "ckatorch", "ckatorch"),
}


def available() -> dict[str, str]:
    """Why tools cannot be imported; importing is not part of what is measured."""
    failed = {}
    for name, (_, _, module) in TOOLS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except ImportError as error:
            failed[name] = f"cannot be imported: {error}"
    return failed


def run(name: str, case: Case) -> tuple[float, Table | None]:
    """Seconds of one pass, and what it found; what a tool leaves on the networks is taken off again."""
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            table = TOOLS[name][0](case)
            return time.perf_counter() - start, table
    finally:
        for net in (case.model_x, case.model_y):
            net.eval()
            for module in net.modules():
                module._forward_hooks.clear()


class quiet:  # noqa: N801 - reads as a word in a with statement
    """Progress bars of peers that cannot be turned off go nowhere."""

    def __enter__(self) -> None:
        self.stderr, sys.stderr = sys.stderr, Path(os.devnull).open("w")

    def __exit__(self, *_: object) -> None:
        sys.stderr.close()
        sys.stderr = self.stderr


# --- the truth -----------------------------------------------------------------------------------------------------


def truth(case: Case) -> Table:
    """Minibatch CKA in float64 by the formula of Song et al. (2012), of every call of every layer."""

    def grams(net: nn.Module, layers: Iterable[str], batch: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        calls: dict[str, int] = {}

        def watch(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
                calls[name] = calls.get(name, 0) + 1
                x = output.detach().flatten(1).double()
                x = x - x[0]
                x = x - x.mean(0)
                found[name if calls[name] == 1 else f"{name}#{calls[name]}"] = (x @ x.T).fill_diagonal_(0)

            return hook

        modules = dict(net.named_modules())
        handles = [modules[name].register_forward_hook(watch(name)) for name in layers]
        with torch.no_grad():
            net(batch)
        for handle in handles:
            handle.remove()
        return found

    def hsic(k: torch.Tensor, other: torch.Tensor, n: int) -> torch.Tensor:
        traces = k.flatten(1) @ other.flatten(1).T
        sums = torch.outer(k.sum((1, 2)), other.sum((1, 2))) / ((n - 1) * (n - 2))
        return (traces + sums - 2 / (n - 2) * k.sum(2) @ other.sum(2).T) / (n * (n - 3))

    cross: Any = 0.0
    self_x: Any = 0.0
    self_y: Any = 0.0
    rows: list[str] = []
    columns: list[str] = []
    for batch, _ in case.loader():
        left = grams(case.model_x, case.layers_x, batch)
        right = grams(case.model_y, case.layers_y, batch)
        rows, columns, n = list(left), list(right), len(batch)
        k, other = torch.stack([*left.values()]), torch.stack([*right.values()])
        cross = cross + n * hsic(k, other, n)
        self_x = self_x + n * hsic(k, k, n).diagonal()
        self_y = self_y + n * hsic(other, other, n).diagonal()
    return Table(rows, columns, (cross / self_x.sqrt()[:, None] / self_y.sqrt()[None, :]).numpy())


def errors(found: Table, true: Table) -> tuple[float, int, int]:
    """The largest error, how many cells are off by more than 0.001, and of how many."""

    def places(names: list[str], there: list[str]) -> tuple[list[int], list[int]]:
        # A tool that knows one call only has overwritten the earlier ones: its number is that of the last. And some
        # compare more layers than they were asked to, which are passed over.
        last = {name.partition("#")[0]: place for place, name in enumerate(there)}
        exact = {name: place for place, name in enumerate(there)}
        known = exact if any("#" in name for name in names) else last
        pairs = [(own, known[name]) for own, name in enumerate(names) if name in known]
        return [own for own, _ in pairs], [place for _, place in pairs]

    own_rows, rows = places(found.rows, true.rows)
    own_columns, columns = places(found.columns, true.columns)
    values, expected = found.values[np.ix_(own_rows, own_columns)], true.values[np.ix_(rows, columns)]
    both = np.isnan(values) & np.isnan(expected)
    off = np.where(both, 0.0, np.nan_to_num(np.abs(values - expected), nan=np.inf))
    return float(off.max()), int((off > 1e-3).sum()), off.size


# --- memory --------------------------------------------------------------------------------------------------------


def peak_of_one(name: str, case: Case) -> float:
    """MiB at the peak of one pass above what the process held before it; run in a process of its own."""
    available()  # imports are not part of the pass
    # Nor is what a tool imports late, or code that is read from the disk when it first runs.
    run(name, replace(case, images=case.images[:8], batch=4))
    before = resident()
    forget_peak()
    run(name, case)
    return (peak() - before) / 2**20


def status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def resident() -> int:
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_in_a_process(name: str, case_name: str, options: argparse.Namespace) -> float | None:
    command = [sys.executable, __file__, "--memory-of", name, "--case", case_name, "--threads", str(options.threads)]
    command += ["--peers", options.peers] if options.peers else []
    # Large arrays go back to the system when they are freed, so that the peak is of what was alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return None if done.returncode else float(json.loads(done.stdout.splitlines()[-1]))


# --- the table -----------------------------------------------------------------------------------------------------


def measure(case_name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    case = CASES[case_name]()
    print(f"\n{case.title}, {len(case.images) // case.batch} batches")
    true = truth(case)
    tables: dict[str, Table | None] = {}
    times: dict[str, list[float]] = {}
    failed = available()
    once: set[str] = set()
    for name in TOOLS:  # the first pass warms caches up and is not counted
        if name in failed:
            continue
        try:
            seconds, tables[name] = run(name, case)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        else:
            times[name] = []
            if seconds > TOO_LONG and name not in ("forward alone", "cka_probe"):
                times[name] = [seconds]
                once.add(name)
    order = [name for name in times if name not in once]
    for place in range(options.rounds):
        for name in order[place % len(order) :] + order[: place % len(order)]:
            times[name].append(run(name, case)[0])
    base = times["forward alone"]
    floor_peak = peak_in_a_process("forward alone", case_name, options)
    found = []
    for name, (_, package, _) in TOOLS.items():
        row: dict[str, Any] = {
            "case": case.title,
            "tool": name,
            "version": version(package),
            "layers": f"{len(case.layers_x)} x {len(case.layers_y)}",
            "samples": len(case.images),
            "batch": case.batch,
        }
        if name in failed:
            found.append({**row, "note": failed[name]})
            continue
        ratios = [t / b for t, b in zip(times[name], base, strict=False)]
        if name in once:
            ratios = [times[name][0] / statistics.median(base)]
        memory = floor_peak if name == "forward alone" else peak_in_a_process(name, case_name, options)
        row |= {
            "rounds": len(times[name]),
            "seconds": f"{statistics.median(times[name]):.4f}",
            "seconds_least": f"{min(times[name]):.4f}",
            "times_floor": f"{statistics.median(ratios):.3f}",
            "peak_mib": "" if memory is None else f"{memory:.1f}",
            "peak_times_floor": "" if memory is None or not floor_peak else f"{memory / floor_peak:.2f}",
        }
        table = tables[name]
        if table is not None:
            worst, wrong, cells = errors(table, true)
            row |= {"largest_error": f"{worst:.1e}", "cells_off_by_0.001": f"{wrong} of {cells}"}
        if name in once:
            row["note"] = "one pass only: it takes too long"
        found.append(row)
    show(found)
    return found


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


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


def machine() -> dict[str, str]:
    """Where and with what the numbers were made."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


COLUMNS = (
    *("case", "tool", "version", "layers", "samples", "batch", "rounds", "seconds", "seconds_least", "times_floor"),
    *("peak_mib", "peak_times_floor", "largest_error", "cells_off_by_0.001", "note"),
)


def write(path: Path, columns: Iterable[str], rows: list[dict[str, Any]]) -> None:
    """Write the rows with the machine, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = machine()
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *place])
        writer.writeheader()
        writer.writerows({**row, **place} for row in rows)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be given several times")
    parser.add_argument("--quick", action="store_true", help="one small case, three rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=5)
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
    if options.quick:
        options.rounds = 3
        measure("quick", options)
        return
    rows = []
    for name in options.case or [name for name in CASES if name != "quick"]:
        rows += measure(name, options)
    write(options.output, COLUMNS, rows)
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
