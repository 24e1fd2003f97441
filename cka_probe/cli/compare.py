"""`cka-probe compare`: compare the layers of two networks or two files, or show a saved result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .networks import layer_list, load_images, load_models, refuse_options_of_images
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
        str,
        typer.Option(
            help="digits, fashion_mnist, noise, a folder of images (normalised as the weights of the networks say), "
            "or a .npy/.npz/.safetensors file."
        ),
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
    permutations: Annotated[
        int | None, typer.Option(help="Count the p-values from this many permutations, also of the largest pair.")
    ] = None,
    outputs: Annotated[bool, typer.Option("--outputs", help="Also compare how the networks answer.")] = False,
    memory: Annotated[
        str | None, typer.Option(help='For --scope dataset: limit such as "4GiB"; a third of what is free by default.')
    ] = None,
    route: Annotated[
        str | None, typer.Option(help='For --scope dataset: "moments", "grams", "disk", "blocks" or "sketch".')
    ] = None,
    pooling: Annotated[str, typer.Option(help='"auto", "flatten", "mean", "cls", "last", "spatial", "all".')] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a minibatch.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of samples; all by default.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    channels: Annotated[int, typer.Option(min=1, help="Channels of digits, fashion_mnist and noise.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of the selection of samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    names: Annotated[str | None, typer.Option(help='Names of both networks, as in --names "before,after".')] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the result as .npz.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all pairs of layers as a table (.csv).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the heatmap (.png, .pdf, .svg).")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the picture.")] = None,
    limits: Annotated[
        str, typer.Option(help='Colours of the picture: "auto", "full" (0 to 1), "data", "chance", or "LOW,HIGH".')
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar and no summary; needs a file or --json.")
    ] = False,
) -> None:
    """Compare every layer of one network with every layer of another.

    A network is a name such as resnet20, torchvision:NAME, timm:NAME, hf:FOLDER, module:function, file.py:function, or
    the folder of a run, such as runs/demo/teacher. Nothing is downloaded: pass files of weights with --weights-x and
    --weights-y, or the weights of a named network are random.

    Files of features (.npy, .npz, .safetensors) or of two signatures are compared instead of networks. The saved result
    of a comparison is printed, and drawn with --plot; of two saved results, the change from the first to the second.
    Images of a folder are scaled to 0..1 and normalised with the mean and deviation that the network's weights were
    trained with (timm's configuration, preprocessor_config.json of Hugging Face, student.json of a run, otherwise
    ImageNet's); a note says so.

    For example:

      cka-probe compare resnet8 resnet20 --data digits --layers "layer*.*" --plot heatmap.png

      cka-probe compare torchvision:resnet18 timm:vit_tiny_patch16_224 --data photos/ --image-size 224 -o result.npz

      cka-probe compare runs/demo/teacher runs/demo/rcka --data fashion_mnist --image-size 16 --plot heatmap.png

      cka-probe compare features_a.npz features_b.npz --json

      cka-probe compare result.npz --plot heatmap.pdf --names "seed 0,seed 1" --limits data

      cka-probe compare before.npz after.npz --plot change.png
    """
    from .output import as_json as json_of
    from .output import check_output, draw, limits_of, named
    from .saved import compare_files, compare_results, kind_of_file, measure_options

    check_output(output, plot, csv, quiet=quiet, json=as_json)
    scale = limits_of(limits)
    chosen = None if names is None else _two_names(names)
    if plot is None and (title is not None or limits != "auto"):
        raise ValueError(f"{'--limits' if title is None else '--title'} is for the picture. Give --plot too.")
    show_progress = not quiet and sys.stderr.isatty()
    kinds = [kind_of_file(source) for source in (model_x, model_y) if source is not None]
    if kinds == ["result", "result"]:
        pair = compare_results(context, (model_x, str(model_y)), chosen, limits=scale)
        if as_json:
            typer.echo(json.dumps(pair))
        elif not quiet:
            say(pair["text"])
        return
    if set(kinds) != {"network"}:
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
        from .inputs import data_notes

        refuse_options_of_images(context, data)
        options = {
            "layers": layer_list(layers),
            "layers_y": None if layers_y is None else layer_list(layers_y),
            "exclude": None if exclude is None else layer_list(exclude),
            "kernel": None if kernel is None else kernel_from_name(kernel),
            "estimator": estimator,
            "scope": scope,
            "measure": measure,
            "permutations": permutations,
            "outputs": outputs,
            "memory": memory,
            "route": route,
            "pooling": pooling,
            "device": device,
            "progress": show_progress,
            **measure_options(option or []),
        }
        both, models, notes = load_models(model_x, model_y, weights_x, weights_y, num_classes, seed, chosen)
        sizes = {"samples": samples, "image_size": image_size, "channels": channels}
        batches, data_y, told = load_images(data, (model_x, model_y or model_x), models, both, batch_size, seed, sizes)
        result = _compare_networks(both, models, batches, f"--data {data}", options | {"data_y": data_y})
        result = changed(result, notes=[*notes, *told, *data_notes(data), *result.notes])
    result = named(result, chosen)
    if output is not None:
        result.save(output)
    if csv is not None:
        result.to_csv(csv, table="pairs")
    if plot is not None:
        draw(result, plot, {"title": title, "limits": scale})
    if as_json:
        typer.echo(json.dumps(json_of(result)))
        if not quiet:
            for note in result.notes:
                say(f"Note: {note}", error=True)
    elif not quiet:
        say(repr(result))
        for kind, path in (("result", output), ("table", csv), ("picture", plot)):
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


def _two_names(text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise ValueError(f'--names takes two different names with a comma between them, "before,after"; got {text!r}.')
    return parts[0], parts[1]
