"""`cka-probe compare`: compare the layers of two networks or two files, or show a saved result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic_write import atomic_write
from .terminal import say

if TYPE_CHECKING:
    from torch import nn

    from ..similarity.matrix import SimilarityMatrix

__all__ = ["compare"]


def compare(
    context: typer.Context,
    model_x: Annotated[str, typer.Argument(help="Rows: a network, or a file of features or results.")],
    model_y: Annotated[str | None, typer.Argument(help="Columns. By default the first network itself.")] = None,
    data: Annotated[
        str, typer.Option(help="digits, noise, a folder of images, or a .npy/.npz/.safetensors file.")
    ] = "digits",
    layers: Annotated[
        str, typer.Option(help='"leaves", "blocks", or names, NAME=NEW and globs (* and **) separated by commas.')
    ] = "leaves",
    layers_y: Annotated[str | None, typer.Option(help="Layers of the second network, if different.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Layers to leave out, written as --layers.")] = None,
    weights_x: Annotated[Path | None, typer.Option(help="Weights of the first network (.safetensors, .pt).")] = None,
    weights_y: Annotated[Path | None, typer.Option(help="Weights of the second network.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of both networks.")] = None,
    kernel: Annotated[
        str | None, typer.Option(help='"linear" (default of CKA), "rbf", "rbf(fraction=0.5)", "cosine", ...')
    ] = None,
    estimator: Annotated[str, typer.Option(help='"unbiased" or "biased".')] = "unbiased",
    scope: Annotated[str | None, typer.Option(help='"minibatch" or "dataset" (exact).')] = None,
    measure: Annotated[str, typer.Option(help='"cka" or another measure, such as "procrustes".')] = "cka",
    option: Annotated[list[str] | None, typer.Option(help="Option of the measure, NAME=VALUE, such as k=5.")] = None,
    pooling: Annotated[str, typer.Option(help='"auto", "flatten", "mean", "cls", "last", "spatial", "all".')] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a minibatch.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of samples; all by default.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    channels: Annotated[int, typer.Option(min=1, help="Channels of digits and noise.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of the selection of samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the result as .npz.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the heatmap (.png, .pdf, .svg).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Compare every layer of one network with every layer of another.

    A network is a name such as resnet20, torchvision:NAME, timm:NAME, hf:FOLDER, module:function or file.py:function.
    Nothing is downloaded: pass files of weights with --weights-x and --weights-y, or the weights are random.

    Files of features (.npy, .npz, .safetensors) or of two signatures are compared instead of networks. The saved result
    of a comparison is printed, and drawn with --plot.

    For example:

      cka-probe compare resnet8 resnet20 --data digits --layers "layer*.*" --plot heatmap.png

      cka-probe compare torchvision:resnet18 timm:vit_tiny_patch16_224 --data photos/ --image-size 224 -o result.npz

      cka-probe compare features_a.npz features_b.npz --json

      cka-probe compare result.npz --plot heatmap.pdf
    """
    from .saved import compare_files, kind_of_file, measure_options

    _check_paths(output, plot)
    show_progress = not quiet and sys.stderr.isatty()
    if {kind_of_file(source) for source in (model_x, model_y) if source is not None} != {"network"}:
        result = compare_files(
            context,
            model_x,
            model_y,
            kernel=kernel,
            estimator=estimator,
            measure=measure,
            options=measure_options(option or []),
            quiet=quiet,
            progress=show_progress,
        )
    else:
        from ..estimators.kernels import kernel_from_name
        from ..similarity.selection import changed
        from .inputs import data_notes, load_data

        _refuse_options_of_images(context, data)
        options = {
            "layers": _layer_list(layers),
            "layers_y": None if layers_y is None else _layer_list(layers_y),
            "exclude": None if exclude is None else _layer_list(exclude),
            "kernel": None if kernel is None else kernel_from_name(kernel),
            "estimator": estimator,
            "scope": scope,
            "measure": measure,
            "pooling": pooling,
            "device": device,
            "progress": show_progress,
            **measure_options(option or []),
        }
        batches = load_data(
            data, batch_size=batch_size, samples=samples, image_size=image_size, channels=channels, seed=seed
        )
        names, models, notes = _load_models(model_x, model_y, weights_x, weights_y, num_classes, seed)
        result = _compare_networks(names, models, batches, f"--data {data}", options)
        result = changed(result, notes=[*notes, *data_notes(data), *result.notes])
    if output is not None:
        result.save(output)
    if plot is not None:
        _draw(result, plot)
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
        if not quiet:
            for note in result.notes:
                say(f"Note: {note}", error=True)
    elif not quiet:
        say(repr(result))
        for kind, path in (("result", output), ("picture", plot)):
            if path is not None:
                say(f"{kind}: {path}")


def _compare_networks(
    names: tuple[str, str],
    models: tuple[nn.Module, nn.Module],
    batches: Iterable[Any],
    data: str,
    options: dict[str, Any],
) -> SimilarityMatrix:
    """The result of the networks; an error that says on what they run if the data are of another kind."""
    from ..comparison.models import compare as compare_models
    from .diagnosis import explained, raised_in_forward

    try:
        return compare_models(*models, batches, names=names, **options)
    except Exception as error:
        if raised_in_forward(error):
            better = explained(dict(zip(names, models, strict=True)), batches, data)
            if better is not None:
                raise better from error
        raise


def _load_models(
    model_x: str,
    model_y: str | None,
    weights_x: Path | None,
    weights_y: Path | None,
    num_classes: int | None,
    seed: int,
) -> tuple[tuple[str, str], tuple[nn.Module, nn.Module], list[str]]:
    """Names, the networks, and notes about their weights; the same object twice if name and weights are the same."""
    import torch

    from ..distill.models.sources import load_network

    torch.manual_seed(seed)
    if model_y is None and weights_y is None:
        weights_y = weights_x  # the first network itself
    model_y = model_y or model_x
    same = model_y == model_x and weights_y == weights_x
    wanted = [(model_x, weights_x)] if same else [(model_x, weights_x), (model_y, weights_y)]
    names, models, notes = [], [], []
    for source, weights in wanted:
        found = load_network(source, weights, num_classes=num_classes)
        # Without its weights, two networks of one kind would have one name.
        name = source if same or model_x != model_y else f"{source} ({weights or 'no weights'})"
        if found.untrained:
            notes.append(f"no weights given: {name} has random weights (seed {seed})")
        notes += found.notes
        names.append(name)
        models.append(found.model)
    return (names[0], names[-1]), (models[0], models[-1]), notes


def _refuse_options_of_images(context: typer.Context, data: str) -> None:
    """Raise ValueError for an option that the data would ignore: a file has its own shape, a folder three channels."""
    folder = Path(data).is_dir()
    for name in ("image_size", "channels"):
        source = context.get_parameter_source(name)
        ignored = Path(data).is_file() or (folder and name == "channels")
        if ignored and source is not None and source.name == "COMMANDLINE":
            reason = "its images have three channels" if folder else "its inputs have their own shape"
            raise ValueError(f"--{name.replace('_', '-')} does not apply to --data {data}: {reason}.")


def _layer_list(text: str) -> list[Any]:
    """The parts of a list of layers; "conv1=stem" calls layer conv1 stem."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [part if "=" not in part or part.startswith("re:") else dict([part.split("=", 1)]) for part in parts]


def _check_paths(output: Path | None, plot: Path | None) -> None:
    """Raise an error before anything runs if the result or the picture could not be written."""
    if output is not None and output.suffix != ".npz":
        raise ValueError(f"--output must end in .npz, got {output}. Use --plot for a picture.")
    if plot is not None:
        from matplotlib.figure import Figure

        kinds = Figure().canvas.get_supported_filetypes()
        if plot.suffix[1:].lower() not in kinds:
            raise ValueError(f"--plot must end in one of .{', .'.join(sorted(kinds))}; got {plot}.")
    for path in (output, plot):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")


def _draw(result: SimilarityMatrix, path: Path) -> None:
    from matplotlib.figure import Figure

    size = min(16.0, max(5.0, 0.16 * max(result.shape) + 3))
    figure = Figure(figsize=(size * 1.15, size), layout="constrained")
    result.plot(ax=figure.subplots())
    atomic_write(path, partial(figure.savefig, format=path.suffix[1:].lower(), dpi=150))


def _as_json(result: SimilarityMatrix) -> dict[str, Any]:
    """The result as JSON types, with null for NaN."""
    import numpy as np

    def listed(array: Any) -> Any:
        if array is None:
            return None
        array = np.broadcast_to(array, result.shape)
        return [[None if np.isnan(v) else float(v) for v in row] for row in array]

    return {
        "measure": result.measure,
        "rows": list(result.rows),
        "columns": list(result.columns),
        "values": listed(result.values),
        "standard_error": listed(result.standard_error),
        "interval": None if result.standard_error is None else [listed(end) for end in result.interval()],
        "p_value": listed(result.p_value),
        "chance": listed(result.chance),
        "notes": list(result.notes),
        "meta": result.meta,
    }
