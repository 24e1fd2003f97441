"""`cka-probe plan`: the time and memory of each way to compare two networks over a whole data set."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .networks import layer_list, load_images, load_models
from .terminal import say

if TYPE_CHECKING:
    from ..comparison.planning import Plan
    from ..estimators.dataset.routes import Route

__all__ = ["plan"]


def plan(
    model_x: Annotated[str, typer.Argument(help="Rows: a network.")],
    model_y: Annotated[str | None, typer.Argument(help="Columns. By default the first network itself.")] = None,
    data: Annotated[str, typer.Option(help="As for compare: digits, noise, a folder or a file.")] = "digits",
    layers: Annotated[str, typer.Option(help="As for compare.")] = "leaves",
    layers_y: Annotated[str | None, typer.Option(help="Layers of the second network, if different.")] = None,
    weights_x: Annotated[Path | None, typer.Option(help="Weights of the first network.")] = None,
    weights_y: Annotated[Path | None, typer.Option(help="Weights of the second network.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of both networks.")] = None,
    kernel: Annotated[str | None, typer.Option(help="As for compare.")] = None,
    estimator: Annotated[str, typer.Option(help='"unbiased" or "biased".')] = "unbiased",
    pooling: Annotated[str, typer.Option(help="As for compare.")] = "auto",
    memory: Annotated[
        str | None, typer.Option(help='Limit such as "4GiB"; a third of what is free by default.')
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a minibatch.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of samples; all by default.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    channels: Annotated[int, typer.Option(min=1, help="Channels of digits and noise.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of the selection of samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Print how long each way to CKA over the whole data set takes, and how much memory (compare --scope dataset).

    The networks run on the first batch only. Products, memory and disk of this machine are measured.

    For example:

      cka-probe plan resnet20 --data digits --memory 200MiB
    """
    from ..capture.layers import layer_parts
    from ..comparison.planning import plan_dataset
    from ..comparison.request import ComparedModel, Request
    from ..estimators.kernels import kernel_from_name

    names, models, _ = load_models(model_x, model_y, weights_x, weights_y, num_classes, seed, None)
    sizes: dict[str, Any] = {"samples": samples, "image_size": image_size, "channels": channels}
    batches, data_y, _ = load_images(data, (model_x, model_y or model_x), models, names, batch_size, seed, sizes)
    chosen = [layer_parts(layer_list(text)) for text in (layers, layers if layers_y is None else layers_y)]
    compared = [ComparedModel(models[0], names[0], chosen[0])]
    if models[1] is not models[0] or chosen[0] != chosen[1]:
        compared.append(ComparedModel(models[1], names[1], chosen[1]))
    request = Request(
        batches,
        data_y=data_y,
        kernel=None if kernel is None else kernel_from_name(kernel),
        estimator=estimator,
        scope="dataset",
        pooling=pooling,
        device=device,
        memory=memory,
        progress=sys.stderr.isatty(),
    )
    found = plan_dataset(compared, request)
    if as_json:
        typer.echo(json.dumps(_as_json(found)))
    else:
        say(_as_text(found))


def _as_json(found: Plan) -> dict[str, Any]:
    return {
        "memory": found.memory,
        "samples": found.samples,
        "layers": found.layers,
        "features": found.features,
        "forward": found.beside,
        "chosen": None if found.chosen is None else found.chosen.name,
        "routes": [
            {
                "route": route.name,
                "fits": route.fits,
                "seconds": None if not math.isfinite(route.seconds) else route.seconds,
                "memory": route.memory,
                "disk": route.disk,
                "passes": route.passes,
                "reason": route.reason,
            }
            for route in found.routes
        ],
    }


def _as_text(found: Plan) -> str:
    from ..comparison.memory import memory_text

    samples = "an unknown number of" if found.samples is None else str(found.samples)
    features = "" if found.features is None else f", features of {memory_text(found.features)}"
    lines = [
        f"{found.layers} layers, {samples} samples{features}. Memory: {memory_text(found.memory)}, of which a forward "
        f"pass takes {memory_text(found.beside)}.",
        "",
        f"  {'route':8} {'time':>9} {'passes':>6} {'memory':>10} {'disk':>10}",
    ]
    lines += [_line(route, route is found.chosen) for route in found.routes]
    lines += ["", "* is what compare takes." if found.chosen is not None else "None fits: compare would refuse."]
    return "\n".join(lines)


def _line(route: Route, chosen: bool) -> str:
    from ..comparison.memory import memory_text

    mark = "*" if chosen else " "
    if not route.fits:
        return f"{mark} {route.name:8} no: {route.reason}"
    time = _time(route.seconds)
    disk = memory_text(route.disk) if route.disk else "-"
    return f"{mark} {route.name:8} {time:>9} {route.passes:6} {memory_text(route.memory):>10} {disk:>10}"


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
