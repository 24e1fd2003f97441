"""`cka-probe compare`: compare the layers of two networks, or of two files of features."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic_write import atomic_write

if TYPE_CHECKING:
    from torch import nn

    from ..similarity.matrix import SimilarityMatrix

__all__ = ["compare"]


def compare(
    context: typer.Context,
    model_x: Annotated[str, typer.Argument(help="Rows: a network or a file of features (.npz, .safetensors).")],
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
    kernel: Annotated[str, typer.Option(help='"linear", "rbf", "rbf(fraction=0.5)", "cosine", ...')] = "linear",
    estimator: Annotated[str, typer.Option(help='"unbiased" or "biased".')] = "unbiased",
    scope: Annotated[str | None, typer.Option(help='"minibatch" or "dataset" (exact).')] = None,
    measure: Annotated[str, typer.Option(help='"cka" or another measure, such as "procrustes".')] = "cka",
    pooling: Annotated[str, typer.Option(help='"auto", "flatten", "mean", "cls", "last", "spatial", "all".')] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a minibatch.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of samples; all by default.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of the selection of samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the result as .npz.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the heatmap (.png, .pdf, .svg).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Compare every layer of one network with every layer of another.

    A network is a name such as resnet20, torchvision:NAME, timm:NAME, hf:FOLDER, module:function or file.py:function.
    Nothing is downloaded: pass files of weights with --weights-x and --weights-y.

    For example:

      cka-probe compare resnet8 resnet20 --data digits --layers "layer*" --plot heatmap.png

      cka-probe compare torchvision:resnet18 timm:vit_tiny_patch16_224 --data photos/ --image-size 224 -o result.npz

      cka-probe compare features_a.npz features_b.npz --json
    """
    _check_paths(output, plot)
    show_progress = not quiet and sys.stderr.isatty()
    if _is_features(model_x) != _is_features(model_y or model_x):
        raise ValueError(f"{model_x} and {model_y}: a network cannot be compared with a file of features.")
    if _is_features(model_x):
        _refuse_options_of_networks(context)
        result = _compare_features(model_x, model_y, kernel, estimator, measure, show_progress)
    else:
        from ..comparison.models import compare as compare_models
        from ..estimators.kernels import kernel_from_name
        from .inputs import load_data

        chosen = kernel_from_name(kernel)
        batches = load_data(data, batch_size=batch_size, samples=samples, image_size=image_size, seed=seed)
        result = compare_models(
            *_load_models(model_x, model_y, weights_x, weights_y, num_classes, seed),
            batches,
            layers=_layer_list(layers),
            layers_y=None if layers_y is None else _layer_list(layers_y),
            exclude=None if exclude is None else _layer_list(exclude),
            kernel=chosen,
            estimator=estimator,
            scope=scope,
            measure=measure,
            pooling=pooling,
            names=(model_x, model_y or model_x),
            device=device,
            progress=show_progress,
        )
    if output is not None:
        result.save(output)
    if plot is not None:
        _draw(result, plot)
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
    elif not quiet:
        typer.echo(repr(result))
        for kind, path in (("result", output), ("picture", plot)):
            if path is not None:
                typer.echo(f"{kind}: {path}")


def _is_features(source: str) -> bool:
    from .inputs import FEATURE_FILES

    return Path(source).suffix in FEATURE_FILES


def _load_models(
    model_x: str,
    model_y: str | None,
    weights_x: Path | None,
    weights_y: Path | None,
    num_classes: int | None,
    seed: int,
) -> tuple[nn.Module, nn.Module]:
    """The two networks; the same object twice if name and weights are the same."""
    import torch

    from ..distill.models.sources import load_model

    torch.manual_seed(seed)
    x = load_model(model_x, weights_x, num_classes=num_classes)
    if (model_y or model_x) == model_x and weights_y == weights_x:
        return x, x
    return x, load_model(model_y or model_x, weights_y, num_classes=num_classes)


def _layer_list(text: str) -> list[Any]:
    """The parts of a list of layers; "conv1=stem" calls layer conv1 stem."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [part if "=" not in part or part.startswith("re:") else dict([part.split("=", 1)]) for part in parts]


# Options that apply to files of features.
FOR_FEATURES = {
    "model_x",
    "model_y",
    "kernel",
    "estimator",
    "scope",
    "measure",
    "output",
    "plot",
    "as_json",
    "quiet",
}


def _refuse_options_of_networks(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    idle = [f"--{name.replace('_', '-')}" for name in given if name not in FOR_FEATURES]
    if idle:
        raise ValueError(f"{', '.join(idle)}: for networks only. Files of features have their own layers and samples.")
    if context.params["scope"] not in (None, "dataset"):
        raise ValueError('Files of features have no minibatches: --scope must be "dataset", or be left out.')


def _compare_features(
    file_x: str, file_y: str | None, kernel: str, estimator: str, measure: str, show_progress: bool
) -> SimilarityMatrix:
    from ..comparison.features import compare_features
    from ..estimators.kernels import kernel_from_name
    from .inputs import load_arrays

    return compare_features(
        load_arrays(file_x),
        None if file_y is None or file_y == file_x else load_arrays(file_y),
        kernel=kernel_from_name(kernel),
        estimator=estimator,
        measure=measure,
        names=(file_x, file_y or file_x),
        progress=show_progress,
    )


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
