"""Time, memory, error and synchronisations of cka_probe on an NVIDIA GPU, in one run under nine minutes.

    python benchmarks/gpu.py                       writes benchmarks/results/gpu.csv
    python benchmarks/gpu.py --output FOLDER       writes FOLDER/gpu.csv
    python benchmarks/gpu.py --cpu-smoke           every part at tiny sizes on the CPU: shows that the script runs

Parts: "compare" (ResNet-50 at 224 and ViT-B/16, batches of 256, and a decoder of 12 layers: time over the forward pass
alone, interleaved in one run; error against Gram matrices in float64; peak memory; waits of the host for the GPU for
each batch, by the profiler; with Gram matrices on a side stream and without; pytorch-cka and torch_cka where they can
be imported), "gram", "rbf" and "centring" (each way to one Gram matrix, linear or RBF, and to U-centring), "buffers"
(against a device copy), "pcka" (COCO sizes), "rcka" (a training step). Seconds are medians of the rounds. What does not
fit the time is written down as skipped.

There is no row for CUDA graphs: a hook is Python that runs at every layer, decides, counts and judges; a captured graph
would replay the kernels of the one batch it was captured with, and none of that.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.buffers import FeatureBuffer
from cka_probe.comparison.grams.cuda import by_cupy, fused_rbf, fused_u_centre, half_gram, syrk_gram, tf32_products
from cka_probe.distill import Outputs, PatchCKALoss, RCKALoss
from cka_probe.estimators.centring import u_center_gram
from cka_probe.estimators.hsic import flat_centred

FIELDS = (
    "part", "case", "method", "seconds", "over_floor", "max_error", "peak_bytes", "peak_over_floor", "waits_per_batch",
    "gigabytes_per_second", "note", "device", "versions", "date", "command",
)  # fmt: skip
Row = dict[str, Any]
Loop = Callable[[list[Any]], Any]


class Bench:
    """Sizes, the device, the clock and the rows of one run."""

    def __init__(self, smoke: bool, minutes: float, output: Path) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.rounds = 1 if smoke else 3
        self.deadline = time.monotonic() + 60 * minutes
        self.file = output / "gpu.csv"
        self.rows: list[Row] = []
        packages = ("torch", "torchvision", "transformers", "cupy-cuda13x", "cupy-cuda12x", "pytorch-cka", "torch_cka")
        self.stamp = {
            "device": platform.machine() if smoke else torch.cuda.get_device_name(),
            "versions": "; ".join([f"python {platform.python_version()}", *filter(None, map(version, packages))]),
            "date": date.today().isoformat(),
            "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        }

    def add(self, part: str, case: str, method: str, **values: Any) -> None:
        """Write a row down at once: a run that is cut off keeps what it has."""
        row = {"part": part, "case": case, "method": method, **values, **self.stamp}
        self.rows.append(row)
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{part:9} {case:28} {method:24} " + "  ".join(shown), flush=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part_file = self.file.with_suffix(".part")
        with part_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self.rows)
        part_file.replace(self.file)

    def late(self, part: str, case: str) -> bool:
        """Whether the time is up; then the case is written down as skipped."""
        if time.monotonic() < self.deadline:
            return False
        self.add(part, case, "all", note="skipped: the time was up")
        return True

    def wait(self) -> None:
        """Until the GPU has done all it was given."""
        if not self.smoke:
            torch.cuda.synchronize()

    def measure(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of one run, and the bytes that it held at its peak beyond what was there before."""
        self.wait()
        before = 0
        if not self.smoke:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        run()
        self.wait()
        seconds = time.perf_counter() - started
        return seconds, 0 if self.smoke else torch.cuda.max_memory_allocated() - before

    def median(self, run: Callable[[], Any], repeat: int = 5) -> float:
        """Median seconds of one of ``repeat`` runs in a row, over the rounds."""
        run()
        times = [self.measure(lambda: [run() for _ in range(repeat)])[0] / repeat for _ in range(self.rounds)]
        return statistics.median(times)


def version(package: str) -> str | None:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def has_cupy(bench: Bench) -> bool:
    if bench.smoke:
        return False
    try:
        import cupy  # noqa: F401
    except ImportError:
        return False
    return True


# --- compare ----------------------------------------------------------------------------------------------------------


def networks(bench: Bench) -> Iterator[tuple[str, nn.Module, list[Any], str, Callable[..., Any]]]:
    """Name, model, batches, class name of its blocks, and how the model is run on a batch."""
    import torchvision
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    smoke, device = bench.smoke, bench.device
    count, n, size = (2, 5, 32) if smoke else (6, 256, 224)

    def images() -> list[torch.Tensor]:
        return [torch.randn(n, 3, size, size, device=device) for _ in range(count)]

    def plain(model: nn.Module, batch: Any) -> Any:
        return model(batch)

    depths = [1, 1, 1, 1] if smoke else [3, 4, 6, 3]
    resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, depths)
    yield f"ResNet-50 {size} x {n}", resnet.to(device).eval(), images(), "Bottleneck", plain
    small = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    large = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
    vit = torchvision.models.VisionTransformer(image_size=size, patch_size=16, **(small if smoke else large))
    yield f"ViT-B/16 {size} x {n}", vit.to(device).eval(), images(), "EncoderBlock", plain
    n, length = (8, 6) if smoke else (64, 256)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50) if smoke else GPT2Config()
    tokens = [torch.randint(config.vocab_size, (n, length), device=device) for _ in range(count)]
    yield f"decoder {length} x {n}", GPT2Model(config).to(device).eval(), tokens, "GPT2Block", plain


def reference(model: nn.Module, batches: list[Any], paths: list[str], run: Callable[..., Any], cast: Any) -> Any:
    """Minibatch CKA of all pairs of blocks from Gram matrices in float64, of the same features."""
    modules = dict(model.named_modules())
    total: Any = 0.0
    for batch in batches:
        grams: list[torch.Tensor] = []

        def hook(_module: nn.Module, _inputs: Any, output: Any, grams: list[torch.Tensor] = grams) -> None:
            x = (output[0] if isinstance(output, tuple) else output).flatten(1).double()
            x = x - x.mean(0)
            grams.append(x @ x.T)

        handles = [modules[path].register_forward_hook(hook) for path in paths]
        with torch.no_grad(), cast():
            run(model, batch)
        for handle in handles:
            handle.remove()
        rows = u_center_gram(torch.stack(grams)).flatten(1)
        total = total + rows @ rows.T
    own = total.diagonal().sqrt()
    return (total / own[:, None] / own[None, :]).cpu()


def waits(bench: Bench, loop: Loop, batches: list[Any]) -> float | None:
    """Synchronisations of host and GPU that each further batch adds, by the profiler."""
    if bench.smoke:
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    names = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
    counts = []
    for few in (batches[:2], batches[:4]):
        with torch.profiler.profile(activities=activities) as profile:
            loop(few)
        counts.append(sum(event.count for event in profile.key_averages() if event.key in names))
    return (counts[1] - counts[0]) / 2


def forwards(model: nn.Module, loop: Loop, batches: list[Any]) -> int:
    """How often the model runs: with overlap, a batch with a layer that turns out to be changed in place runs twice."""
    ran: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: ran.append(None))
    loop(batches)
    handle.remove()
    return len(ran)


class Loader(list):
    """Batches as torch_cka wants them: tuples, and a data set with a name."""

    dataset = "random"


def peers(model: nn.Module, paths: list[str], device: torch.device) -> dict[str, Loop]:
    """Those that can be imported."""
    found: dict[str, Loop] = {}
    try:
        from cka import compute_cka

        found["pytorch-cka"] = lambda data: compute_cka(
            model, model, data, layers=paths, device=str(device), progress=False
        )[0].cpu()
    except ImportError:
        pass
    try:
        from torch_cka import CKA

        def torch_cka(data: list[Any]) -> torch.Tensor:
            peer = CKA(model, model, "x", "y", paths, paths, device=str(device))
            with torch.no_grad():
                peer.compare(Loader((x,) for x in data), Loader((x,) for x in data))
            return peer.export()["CKA"].cpu()

        found["torch_cka"] = torch_cka
    except ImportError:
        pass
    return found


def compare_part(bench: Bench) -> None:
    for name, model, batches, block, run in networks(bench):
        paths = [path for path, module in model.named_modules() if type(module).__name__ == block]
        for precision in ("float32", "bfloat16"):
            case = f"{name} {precision}"
            if bench.late("compare", case):
                continue
            autocast = None if precision == "float32" else torch.bfloat16
            options: dict[str, Any] = {"progress": False, "autocast": autocast, "forward": run}
            one_case(bench, case, model, batches, paths, run, options)
        del model, batches


def one_case(
    bench: Bench,
    case: str,
    model: nn.Module,
    batches: list[Any],
    paths: list[str],
    run: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    """One model in one precision: every method in turn, round after round."""

    def cast() -> Any:
        dtype = options["autocast"]
        return nullcontext() if dtype is None else torch.autocast(bench.device.type, dtype)

    def floor(data: list[Any]) -> None:
        with torch.no_grad(), cast():
            for batch in data:
                run(model, batch)

    def ours(**more: Any) -> Loop:
        return lambda data: torch.from_numpy(cp.compare(model, model, data, layers=paths, **options, **more).values)

    methods: dict[str, Loop] = {"forward alone": floor, "cka_probe": ours()}
    if not bench.smoke:
        methods["cka_probe overlap"] = ours(overlap=True)
        methods["cka_probe tf32"] = ours(tf32=True)
    if has_cupy(bench):
        methods["cka_probe cupy"] = ours(backend="cupy")
    if options["autocast"] is None:
        leaves = options | {"layers": "leaves"}
        methods["cka_probe leaves"] = lambda data: cp.compare(model, model, data, **leaves)
        if not bench.smoke:
            methods["cka_probe leaves overlap"] = lambda data: cp.compare(model, model, data, overlap=True, **leaves)
        methods |= peers(model, paths, bench.device)
    expected = reference(model, batches, paths, run, cast)
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    peak: dict[str, int] = {}
    values: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for turn in range(bench.rounds + 1):  # the first warms up
        for method, loop in methods.items():
            slow = method == "torch_cka" and turn > 1
            if method in failed or slow or (turn > 1 and time.monotonic() > bench.deadline):
                continue
            try:
                with quiet():
                    took, peak[method] = bench.measure(
                        lambda loop=loop, method=method: values.__setitem__(method, loop(batches))
                    )
            except Exception as error:  # a peer that fails is a finding, not an end
                failed[method] = f"{type(error).__name__}: {error}"[:200]
                continue
            if turn:
                seconds[method].append(took)
    base = statistics.median(seconds["forward alone"])
    for method, loop in methods.items():
        if method in failed or not seconds[method]:
            bench.add("compare", case, method, note=failed.get(method, "skipped: the time was up"))
            continue
        took = statistics.median(seconds[method])
        found = values[method]
        comparable = isinstance(found, torch.Tensor) and found.shape == expected.shape
        row: Row = {"seconds": took, "over_floor": took / base, "peak_bytes": peak[method]}
        if peak["forward alone"]:
            row["peak_over_floor"] = peak[method] / peak["forward alone"]
        if comparable:
            row["max_error"] = float((found.double() - expected).abs().max())
        if method in ("cka_probe", "cka_probe overlap", "cka_probe cupy", "pytorch-cka"):
            with quiet():
                row["waits_per_batch"] = waits(bench, loop, batches)
        if "overlap" in method:
            row["note"] = f"{forwards(model, loop, batches)} forwards for {len(batches)} batches"
        bench.add("compare", case, method, **row)


@contextmanager
def quiet() -> Iterator[None]:
    """Peers warn and print as they go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- parts of it ------------------------------------------------------------------------------------------------------


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
            ways["cupy syrk float32"] = (lambda x=x: syrk_gram(x), x)
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
            width = d**0.5
            ways["cupy fused"] = (lambda x=x, width=width: fused_rbf(x, width), fixed)
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
    if has_cupy(bench):
        ways["cupy fused"] = lambda: fused_u_centre(grams)
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
            # The other parts still run: time on such a machine is short.
            failed = True
            bench.add(part, "all", "all", note=f"failed: {type(error).__name__}: {error}"[:300])
            if bench.smoke:
                raise
    print(bench.file)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
