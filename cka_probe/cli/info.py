"""`cka-probe info`: versions and devices of this machine, or the layers of a network."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

__all__ = ["info"]

# Optional libraries, and the extra that installs each.
OPTIONAL = {
    "accelerate": "distill",
    "pycocotools": "dense",
    "transformers": "hf",
    "timm": "timm",
    "faiss-cpu": "atlas",
    "plotly": "report",
    "tensorboard": "tensorboard",
}


def info(
    model: Annotated[str | None, typer.Argument(help="A network; its layers are listed.")] = None,
    image_size: Annotated[int, typer.Option(help="Height and width of the example image.")] = 32,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the network.")] = None,
    layers: Annotated[str | None, typer.Option(help="List only these layers, as in compare.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions and devices, or the layers of a network with their output shapes.

    For example:

      cka-probe info

      cka-probe info torchvision:resnet18 --layers blocks
    """
    if model is None:
        facts = _machine()
        typer.echo(json.dumps(facts) if as_json else "\n".join(f"{name:14} {value}" for name, value in facts.items()))
        return
    table = _layers(model, image_size, num_classes, layers)
    if as_json:
        keys = ("layer", "type", "output", "parameters")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in table]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..similarity.text import printable

    # As Text, a name in square brackets is not read as a style.
    shown = Table(title=Text(printable(f"Layers of {model}")), title_justify="left")
    for heading, justify in (("layer", "left"), ("type", "left"), ("output", "left"), ("parameters", "right")):
        shown.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=heading == "layer")
    for path, kind, shape, parameters in table:
        shown.add_row(Text(printable(path)), Text(printable(kind)), shape or "did not run", f"{parameters:,}")
    Console().print(shown)


def _machine() -> dict[str, Any]:
    """Versions and devices of this machine, with the install line of each missing library."""
    import os

    import torch

    from .. import __version__

    facts: dict[str, Any] = {
        "cka_probe": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
        "gpu": "none",
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    try:
        import cupy

        facts["cupy"] = cupy.__version__
    except ImportError:
        cuda = (torch.version.cuda or "13").partition(".")[0]
        facts["cupy"] = f"not installed: pip install 'cka-probe[cuda{cuda}]' (needs an NVIDIA GPU)"
    for name, extra in OPTIONAL.items():
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = f"not installed: pip install 'cka-probe[{extra}]'"
    return facts


def _layers(
    source: str, image_size: int, num_classes: int | None, layers: str | None
) -> list[tuple[str, str, str, int]]:
    import torch

    from ..capture.layers import layer_table, select_layers
    from ..capture.state import borrowed
    from ..distill.models.sources import load_model
    from .diagnosis import explained, raised_in_forward

    model = load_model(source, num_classes=num_classes)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)), 3)

    def run(network: torch.nn.Module) -> Any:
        example: Any = getattr(network, "dummy_inputs", None)
        if isinstance(example, dict):
            return network(**example)
        return network(torch.randn(2, channels, image_size, image_size))

    try:
        with borrowed([model]):
            table = layer_table(model, run)
    except Exception as error:
        if not raised_in_forward(error):
            raise
        better = explained({source: model}, [torch.randn(2, channels, image_size, image_size)], "--data noise")
        if better is None:
            raise
        raise better from error
    if layers is None:
        return table
    picked = set(select_layers(model, [part.strip() for part in layers.split(",")]).paths)
    return [row for row in table if row[0] in picked]
