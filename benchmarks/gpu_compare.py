"""The part "compare" of benchmarks/gpu.py: compare() and other tools on a GPU, beside the forward passes alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from gpu_bench import Bench, Row, has_cupy, quiet
from torch import nn

import cka_probe as cp
from cka_probe.estimators.centring import u_center_gram

Loop = Callable[[list[Any]], Any]


def networks(bench: Bench) -> Iterator[tuple[str, nn.Module, list[Any], str, Callable[..., Any]]]:
    """Each network as (name, model, batches, class name of its blocks, function that runs it on a batch)."""
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
    """Minibatch CKA of all pairs of blocks, from Gram matrices in float64 of the same features."""
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
    """Number of times that the host waits for the GPU in each batch after the third, counted by the profiler.

    Of fewer than six batches: from there on, the end of a comparison reads two sums more.
    """
    if bench.smoke:
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    names = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
    counts = []
    for few in (batches[:3], batches[:5]):
        with torch.profiler.profile(activities=activities) as profile:
            loop(few)
        counts.append(sum(event.count for event in profile.key_averages() if event.key in names))
    return (counts[1] - counts[0]) / 2


def forwards(model: nn.Module, loop: Loop, batches: list[Any]) -> int:
    """Number of forward passes. With overlap, a batch runs twice if a layer is changed in place after its hook."""
    ran: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: ran.append(None))
    loop(batches)
    handle.remove()
    return len(ran)


class Loader(list):
    """Batches in the form that torch_cka needs: tuples, and a data set with a name."""

    dataset = "random"


def peers(model: nn.Module, paths: list[str], device: torch.device) -> dict[str, Loop]:
    """The other tools that can be imported."""
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
    """Measure one model in one precision: in each round, every method once."""

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
    for turn in range(bench.rounds + 1):  # the first round only warms up
        for method, loop in methods.items():
            slow = method == "torch_cka" and turn > 1
            if method in failed or slow or (turn > 1 and time.monotonic() > bench.deadline):
                continue
            try:
                with quiet():
                    took, peak[method] = bench.measure(
                        lambda loop=loop, method=method: values.__setitem__(method, loop(batches))
                    )
            except Exception as error:  # the table lists the error of a tool that fails
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
