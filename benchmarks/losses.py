"""Time and memory of the CKA losses, forward and backward: batched form, per-channel loop, bare matrix products.

    python benchmarks/losses.py                  everything, under three minutes on a quiet machine
    python benchmarks/losses.py --no-loop        without the loops, which take most of it
    python benchmarks/losses.py --sizes 16x20    # one
    python benchmarks/losses.py --device cuda

Forms: "loop" is the released code (un-centred, trace(K @ L), x[i] for each channel; docs/paper.md, sections 2 and 3).
"released" is the same number by batched products, "paper" the centred number, "floor" only the matrix products that
"paper" needs. Each form runs in a process of its own, so that it has its own peak of memory. Times are the least over
the repetitions. Results go to benchmarks/results/losses.csv.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from memory import peak_of
from tables import command, processor, save_csv
from torch import Tensor

from cka_probe.distill.dense import PatchCKALoss, SegmentationCKALoss
from cka_probe.distill.losses.cka import LogitCKALoss
from cka_probe.distill.losses.patches import patch_size, patch_stack, resized

RESULTS = Path(__file__).parent / "results" / "losses.csv"
LEVELS = ((128, 160), (64, 80), (32, 40), (16, 20))
LOGITS = ((64, 100), (256, 1000))
# Loops that need more than a minute, or gigabytes of memory: inter forms a Gram matrix over 1024 entries per channel.
TOO_LONG = {("128x160", "intra + inter"), ("64x80", "intra + inter")}


# --- the loops ----------------------------------------------------------------------------------------------------


def alignment_by_traces(x: Tensor, y: Tensor, scaled: bool = False) -> Tensor:
    """Alignment as the released code computes it: the trace of full matrix products."""
    k, other = x @ x.T, y @ y.T
    if scaled:
        k, other = (gram / gram.diag().sqrt()[:, None] for gram in (k, other))
    return (k @ other.T).trace() / ((k @ k.T).trace() * (other @ other.T).trace()).sqrt()


def patch_loop(x: Tensor, y: Tensor, inter: bool) -> Tensor:
    height, width = (-(-side // 16) * 16 for side in x.shape[2:])
    x, y = (patch_stack(resized(z, height, width), 16, "patch") for z in (x, y))
    total = x.new_zeros(())
    for i in range(len(x)):
        total = total - 10 * alignment_by_traces(x[i], y[i])
        if inter:
            total = total - 10 * alignment_by_traces(x[i].T, y[i].T)
    return total / len(x)


def logit_loop(x: Tensor, y: Tensor) -> Tensor:
    return -15 * alignment_by_traces(x, y, True) - 15 * alignment_by_traces(x.T, y.T, True)


# --- the floors ---------------------------------------------------------------------------------------------------


def patch_floor(x: Tensor, y: Tensor, inter: bool, patch: int) -> Callable[[], None]:
    """The products that no form can avoid: both Gram matrices, for inter the cross product, and their gradients."""
    height, width = (-(-side // patch) * patch for side in x.shape[2:])
    x, y = (patch_stack(resized(z.detach(), height, width), patch, "patch") for z in (x, y))

    def run() -> None:
        gram = x @ x.mT
        torch.bmm(y, y.mT)
        result = gram @ x
        if inter:
            result.baddbmm_(x @ y.mT, y)

    return run


def logit_floor(x: Tensor, y: Tensor) -> Callable[[], None]:
    x, y = x.detach(), y.detach()

    def run() -> None:
        gram, cross = x @ x.T, x @ y.T
        _ = y @ y.T
        _ = gram @ x
        _ = cross @ y

    return run


# --- measuring ----------------------------------------------------------------------------------------------------


def cases(loops: bool) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """Cases as (what, size, form, shape), the slow ones last."""
    listed: list[tuple[str, str, str, tuple[int, ...]]] = []
    for height, width in LEVELS:
        for what in ("intra", "intra + inter"):
            size = f"{height}x{width}"
            forms = ["floor", "released", "paper"] + ["loop"] * (loops and (size, what) not in TOO_LONG)
            listed += [(what, size, form, (4, 256, height, width)) for form in forms]
    for shape in LOGITS:
        forms = ["floor", "released", "paper"] + ["loop"] * loops
        listed += [("intra + inter", "logits {}x{}".format(*shape), form, shape) for form in forms]
    listed.append(("intra + inter", "scores 64x128", "paper", (4, 19, 64, 128)))
    return sorted(listed, key=lambda case: case[2] == "loop")


def task(what: str, size: str, form: str, shape: tuple[int, ...], device: str) -> Callable[[], float]:
    """A function that runs one forward and backward pass and returns the loss."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    x.requires_grad_()
    inter = what != "intra"
    if len(shape) == 2:
        variant = "paper" if form == "paper" else "released"
        logit_loss = LogitCKALoss(variant=variant)
        if form == "floor":
            bare = logit_floor(x, y)
        forward = (lambda: logit_loop(x, y)) if form == "loop" else (lambda: logit_loss(x, y))
    elif size.startswith("scores"):
        score_loss = SegmentationCKALoss()
        forward = lambda: score_loss(x, y)  # noqa: E731
    else:
        weight = 10.0 * inter
        patch_loss = PatchCKALoss(inter_weight=weight, variant="paper" if form == "paper" else "released")
        if form == "floor":
            bare = patch_floor(x, y, inter, patch_size(shape[2], shape[3], 16, 16))
        forward = (lambda: patch_loop(x, y, inter)) if form == "loop" else (lambda: patch_loss(x, y))

    def run() -> float:
        if form == "floor":
            bare()
            return float("nan")
        x.grad = None
        value = forward()
        value.backward()
        return value.item()

    return run


def peak_mib(run: Callable[[], float], device: str) -> tuple[float, float]:
    """The loss, and the peak memory that the first run adds, in MiB; NaN if the system does not report it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = run()
        return value, (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak_of(run)


def measure(
    case: tuple[str, str, str, tuple[int, ...]], device: str, threads: int, seconds: float
) -> tuple[float, ...]:
    """Least time in milliseconds, peak memory in MiB, and loss of one form."""
    torch.set_num_threads(threads)
    run = task(*case, device)

    def timed() -> float:
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    if device != "cpu":
        timed()  # the first run includes the start of the libraries
    start = time.perf_counter()
    value, memory = peak_mib(run, device)
    first = time.perf_counter() - start
    times = [first]
    while sum(times) < seconds or len(times) < 3:
        if first > seconds:  # a slow loop runs once
            break
        times.append(timed())
    return min(times) * 1e3, memory, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-loop", action="store_true", help="leave out the per-channel loops")
    names = [f"{height}x{width}" for height, width in LEVELS]
    names += [*("logits {}x{}".format(*shape) for shape in LOGITS), "scores 64x128"]
    parser.add_argument("--sizes", nargs="+", choices=names, default=names, metavar="SIZE", help=", ".join(names))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="of repetitions for each form")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    machine = processor() if options.device == "cpu" else "GPU"
    rows = []
    # This process has computed nothing yet, so a fork has a clean peak and need not import torch again.
    context = multiprocessing.get_context("fork")
    for case in (case for case in cases(not options.no_loop) if case[1] in options.sizes):
        what, size, form, _ = case
        with context.Pool(1) as pool:
            milliseconds, memory, value = pool.apply(measure, (case, options.device, options.threads, options.seconds))
            if options.device == "cuda":
                machine = pool.apply(torch.cuda.get_device_name)
        rows.append({"size": size, "terms": what, "form": form, "milliseconds": milliseconds, "peak_mib": memory})
        rows[-1] |= {"loss": value, "machine": machine, "cores": os.cpu_count(), "threads": options.threads}
        rows[-1] |= {"torch": torch.__version__, "python": platform.python_version(), "date": date.today().isoformat()}
        rows[-1]["command"] = command()
        print(f"{size:18} {what:14} {form:9} {milliseconds:10.1f} ms {memory:9.1f} MiB", flush=True)
    rounded = [
        {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ]
    save_csv(options.output, rows[0], rounded)
    print(f"\n{'':33} {'x floor':>8} {'x faster than the loop':>24} {'memory':>8}")
    for row in rows:
        same = {
            other["form"]: other for other in rows if (other["size"], other["terms"]) == (row["size"], row["terms"])
        }
        if row["form"] in ("released", "paper"):
            floor, loop = same.get("floor"), same.get("loop")
            texts = [f"{row['milliseconds'] / floor['milliseconds']:8.2f}" if floor else 8 * " "]
            texts.append(f"{loop['milliseconds'] / row['milliseconds']:24.1f}" if loop else 24 * " ")
            texts.append(f"{loop['peak_mib'] / row['peak_mib']:8.1f}" if loop and row["peak_mib"] > 0 else "")
            print(f"{row['size']:18} {row['terms']:14} {row['form']:9}", *texts)
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
