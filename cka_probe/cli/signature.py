"""`cka-probe signature`: write the signature of a network on a data set, to be compared later without the network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .networks import layer_list, load_images, load_models, refuse_options_of_images
from .terminal import say

__all__ = ["signature"]


def signature(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The network.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the signature (.npz).")],
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion_mnist, noise, a folder of images (normalised as the weights of the network say), "
            "or a .npy/.npz/.safetensors file."
        ),
    ] = "digits",
    form: Annotated[
        str,
        typer.Option(help='"exact" (float32), "half" (float16) or "sketch" (a few thousand numbers for each layer).'),
    ] = "exact",
    size: Annotated[int | None, typer.Option(min=64, help="Numbers for a layer of a sketch, 4096 by default.")] = None,
    sketch_seed: Annotated[int | None, typer.Option(min=0, help="Seed of a sketch: the same for all models.")] = None,
    layers: Annotated[
        str, typer.Option(help='"leaves", "blocks", or names, NAME=NEW and globs (* and **) separated by commas.')
    ] = "leaves",
    exclude: Annotated[str | None, typer.Option(help="Layers to leave out, written as --layers.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the network (.safetensors, .pt).")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the network.")] = None,
    kernel: Annotated[str, typer.Option(help='"linear", "rbf", "rbf(fraction=0.5)", "cosine", ...')] = "linear",
    estimator: Annotated[str, typer.Option(help='"unbiased" or "biased".')] = "unbiased",
    pooling: Annotated[str, typer.Option(help='"auto", "flatten", "mean", "cls", "last", "spatial", "all".')] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a minibatch: the same for all models.")] = 64,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of samples; all by default.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    channels: Annotated[int, typer.Option(min=1, help="Channels of digits, fashion_mnist and noise.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of the selection of samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the network in results; MODEL by default.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Write the signature of a network: its centred Gram matrices on a data set, or a sketch of them.

    Two signatures of the same samples are compared by `cka-probe compare a.npz b.npz`, without the networks and the
    data. Thousands of them are one `cka_probe.Atlas`. A sketch takes 8 KB for each layer, whatever the number of
    samples; its error of CKA is (1 - CKA^2) / sqrt(size), at most 0.016 for 4096 numbers.

    For example:

      cka-probe signature resnet20 --weights resnet20.safetensors --data digits -o resnet20.sig.npz

      cka-probe signature timm:vit_tiny_patch16_224 --data photos/ --image-size 224 --form sketch -o vit.sig.npz

      cka-probe compare resnet20.sig.npz vit.sig.npz
    """
    from ..comparison.signature_files import check_npz
    from ..comparison.signature_vectors import Sketch, as_sketch
    from ..comparison.signatures import signature as make_signature
    from ..estimators.kernels import kernel_from_name
    from .diagnosis import explained, raised_in_forward
    from .inputs import data_notes

    check_npz(output)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder {output.absolute().parent} does not exist.")
    given: dict[str, int] = {}
    given |= {} if size is None else {"size": size}
    given |= {} if sketch_seed is None else {"seed": sketch_seed}
    if given and form != "sketch":
        raise ValueError(f"--size and --sketch-seed are for --form sketch, got --form {form}.")
    wanted: Any = Sketch(**given) if given else form
    as_sketch(wanted)
    refuse_options_of_images(context, data)
    names, models, notes = load_models(model, None, weights, None, num_classes, seed, None)
    sizes = {"samples": samples, "image_size": image_size, "channels": channels}
    batches, _, told = load_images(data, (model, model), models, names, batch_size, seed, sizes)
    try:
        found = make_signature(
            models[0],
            batches,
            name=name or model,
            layers=layer_list(layers),
            exclude=None if exclude is None else layer_list(exclude),
            kernel=kernel_from_name(kernel),
            estimator=estimator,
            pooling=pooling,
            device=device,
            progress=not quiet and sys.stderr.isatty(),
            form=wanted,
        )
    except Exception as error:
        if raised_in_forward(error):
            better = explained({names[0]: models[0]}, batches, f"--data {data}")
            if better is not None:
                raise better from error
        raise
    found = replace(found, notes=(*notes, *told, *data_notes(data), *found.notes))
    found.save(output)
    if not quiet:
        say(f"{found.name}: {len(found.layers)} layers, {sum(found.samples):,} samples, {form}")
        for note in found.notes:
            say(f"note: {note}")
        say(f"signature: {output} ({output.stat().st_size / 1e6:,.1f} MB)")
