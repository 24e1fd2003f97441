"""Time, memory, error and synchronisations of cka_probe on an NVIDIA GPU, in one run under nine minutes.

    python benchmarks/gpu.py                       writes benchmarks/results/gpu.csv
    python benchmarks/gpu.py --output FOLDER       writes FOLDER/gpu.csv
    python benchmarks/gpu.py --cpu-smoke           every part at tiny sizes on the CPU, to see that the script runs

Parts:
- "compare": ResNet-50 at 224 and ViT-B/16 with batches of 256, and a decoder of 12 layers. Time over the forward pass
  alone (interleaved), error against Gram matrices in float64, peak memory, and how often the host waits for the GPU in
  each batch (by the profiler); with and without a side stream; pytorch-cka and torch_cka if they can be imported.
- "gram", "rbf", "centring": each way to compute one Gram matrix (linear or RBF), and to U-centre it.
- "buffers": against a device copy. "pcka": a loss at COCO sizes. "rcka": a training step.

Seconds are medians over the rounds. A case that does not fit the time is listed as skipped.

CUDA graphs have no row. A hook is Python code that runs at every layer and decides what to do; a captured graph would
only replay the kernels of the batch that it was captured with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, has_cupy, quiet
from gpu_compare import compare_part
from torch import nn

import cka_probe as cp
from cka_probe.capture.buffers import FeatureBuffer
from cka_probe.comparison.grams.cuda import by_cupy, half_gram, tf32_products
from cka_probe.distill import Outputs, PatchCKALoss, RCKALoss
from cka_probe.estimators.hsic import flat_centred


def gram_part(bench: Bench) -> None:
    shapes = [(16, 300)] if bench.smoke else [(256, 802_816), (256, 151_296), (256, 2_048), (64, 196_608), (1024, 4096)]
    for n, d in shapes:
        case = f"{n} x {d}"
        if bench.late("gram", case):
            continue
        x = torch.randn(n, d, device=bench.device)
        half = x.bfloat16()
        ways: dict[str, tuple[Callable[[], torch.Tensor], torch.Tensor]] = {
            "torch float32": (lambda x=x: x @ x.T, x),
            "torch bfloat16 to float32": (lambda h=half: half_gram(h), half),
            "torch cast and float32": (lambda h=half: h.float() @ h.float().T, half),
        }
        if not bench.smoke:

            def in_tf32(x: torch.Tensor = x) -> torch.Tensor:
                with tf32_products(x.device):
                    return x @ x.T

            ways["torch tf32"] = (in_tf32, x)
        if has_cupy(bench):
            ways["cupy float32"] = (lambda x=x: by_cupy(cp.Linear(), x), x)
        for method, (way, features) in ways.items():
            wide = features.double()
            expected = wide @ wide.T
            error = float((way().double() - expected).abs().max() / expected.abs().max())
            del wide, expected
            took = bench.median(way)
            moved = features.numel() * features.element_size() / took / 1e9
            bench.add("gram", case, method, seconds=took, max_error=error, gigabytes_per_second=moved)


def rbf_part(bench: Bench) -> None:
    shapes = [(16, 300)] if bench.smoke else [(256, 802_816), (256, 151_296), (256, 2_048), (1024, 4096)]
    for n, d in shapes:
        case = f"{n} x {d}"
        if bench.late("rbf", case):
            continue
        x = torch.randn(n, d, device=bench.device)
        fixed, median = cp.RBF(bandwidth=d**0.5), cp.RBF()
        ways: dict[str, tuple[Callable[[], torch.Tensor], cp.RBF]] = {
            "torch": (lambda x=x, kernel=fixed: kernel(x), fixed),
            "torch median": (lambda x=x, kernel=median: kernel(x), median),
        }
        if has_cupy(bench):
            ways["cupy"] = (lambda x=x, kernel=fixed: by_cupy(kernel, x), fixed)
            ways["cupy median"] = (lambda x=x, kernel=median: by_cupy(kernel, x), median)
        for method, (way, kernel) in ways.items():
            error = float((way().double() - kernel(x.double())).abs().max())
            moved = x.numel() * x.element_size() / (took := bench.median(way)) / 1e9
            bench.add("rbf", case, method, seconds=took, max_error=error, gigabytes_per_second=moved)


def centring_part(bench: Bench) -> None:
    layers, n = (3, 16) if bench.smoke else (160, 256)
    grams = torch.randn(layers, n, n, device=bench.device)
    grams = (grams + grams.mT) / 8
    expected = flat_centred(grams.double(), "unbiased")
    ways: dict[str, Callable[[], torch.Tensor]] = {"torch": lambda: flat_centred(grams, "unbiased")}
    for method, way in ways.items():
        error = float((way().double() - expected).abs().max())
        bench.add("centring", f"{layers} x {n} x {n}", method, seconds=bench.median(way), max_error=error)


def buffers_part(bench: Bench) -> None:
    rows, width, parts = (16, 32, 4) if bench.smoke else (256, 100_352, 16)
    features = torch.randn(rows, width, device=bench.device)
    target = torch.empty(rows * parts, width, device=bench.device)

    def fill(rows_known: int | None) -> None:
        buffer = FeatureBuffer(rows=rows_known)
        for _ in range(parts):
            buffer.append(features)

    def copy() -> None:
        for i in range(parts):
            target[i * rows : (i + 1) * rows].copy_(features)

    size = 2 * target.numel() * target.element_size()  # read and written
    base = bench.median(copy)
    ways: dict[str, Callable[[], None]] = {
        "device copy": copy,
        "buffer, rows known": lambda: fill(rows * parts),
        "buffer, growing": lambda: fill(None),
    }
    for method, way in ways.items():
        took = bench.median(way)
        bench.add(
            "buffers", f"{parts} x {rows} x {width}", method,
            seconds=took, over_floor=took / base, gigabytes_per_second=size / took / 1e9,
        )  # fmt: skip


def pcka_part(bench: Bench) -> None:
    sizes = [(8, 12), (4, 6)] if bench.smoke else [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
    n, channels = (2, 4) if bench.smoke else (2, 256)
    student = [torch.randn(n, channels, h, w, device=bench.device, requires_grad=True) for h, w in sizes]
    teacher = [torch.randn(n, channels, h, w, device=bench.device) for h, w in sizes]
    for inter in (0.0, 10.0):
        loss = PatchCKALoss(patch=2 if bench.smoke else 16, inter_weight=inter)

        def step(loss: nn.Module = loss) -> None:
            with quiet():
                torch.autograd.grad(loss(student, teacher), student, allow_unused=True)

        took = bench.median(step, repeat=2)
        _, peak = bench.measure(step)
        bench.add("pcka", f"{n} x {channels}, COCO pyramid", f"inter_weight {inter:g}", seconds=took, peak_bytes=peak)


def rcka_part(bench: Bench) -> None:
    import torchvision

    n, size = (4, 32) if bench.smoke else (128, 224)
    student, teacher = torchvision.models.resnet18().to(bench.device), torchvision.models.resnet18().to(bench.device)
    teacher.eval()
    optimiser = torch.optim.SGD(student.parameters(), lr=1e-3)
    images = torch.randn(n, 3, size, size, device=bench.device)
    target = torch.randint(1000, (n,), device=bench.device)
    taps: dict[str, torch.Tensor] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.layer4.register_forward_hook(lambda _m, _i, output, name=name: taps.__setitem__(name, output))
    rcka = RCKALoss()

    def step(extra: Callable[[Any, Any], Any]) -> None:
        with torch.no_grad():
            taught = teacher(images)
        logits = student(images)
        loss = nn.functional.cross_entropy(logits, target) + extra(logits, taught)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    ways = {
        "cross-entropy alone": lambda: step(lambda _student, _teacher: 0.0),
        "with RCKA": lambda: step(lambda s, t: rcka(Outputs(s, (taps["student"],)), Outputs(t, (taps["teacher"],)))),
    }
    base = None
    for method, way in ways.items():
        took = bench.median(way, repeat=1 if bench.smoke else 5)
        base = base or took
        bench.add("rcka", f"ResNet-18 {size} x {n}", method, seconds=took, over_floor=took / base)


PARTS: dict[str, Callable[[Bench], None]] = {
    "gram": gram_part,
    "rbf": rbf_part,
    "centring": centring_part,
    "buffers": buffers_part,
    "pcka": pcka_part,
    "rcka": rcka_part,
    "compare": compare_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for gpu.csv")
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on the CPU; needs --output")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no new case after this time")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if options.cpu_smoke and options.output == parser.get_default("output"):
        parser.error("--cpu-smoke measures nothing: pass --output, so that it does not replace the results of a GPU")
    if not options.cpu_smoke and not torch.cuda.is_available():
        parser.error("this needs an NVIDIA GPU; --cpu-smoke --output FOLDER shows that the script runs")
    bench = Bench(options.cpu_smoke, options.minutes, options.output)
    failed = False
    for part in options.parts:
        if bench.late(part, "all"):
            continue
        try:
            PARTS[part](bench)
        except Exception as error:
            # The other parts still run, because time on a GPU machine is short.
            failed = True
            bench.add(part, "all", "all", note=f"failed: {type(error).__name__}: {error}"[:300])
            if bench.smoke:
                raise
    print(bench.file)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
