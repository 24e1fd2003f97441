"""`cka-probe distill` and `cka-probe distill-table`: train students from recipes, and tabulate them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import say

__all__ = ["distill", "distill_table", "new"]

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change the recipe. May be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Fresh = Annotated[bool, typer.Option(help="Start again, even if there are results or checkpoints.")]


def distill(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe; examples/recipes has some.")],
    changes: Changes = None,
    method: Annotated[str | None, typer.Option(help="Method: ce, kd, rcka, ... By default that of the recipe.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed. By default that of the recipe.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output directory. By default that of the recipe.")
    ] = None,
    fresh: Fresh = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a student as a recipe describes.

    If a run was stopped, the same command continues it from its last checkpoint.

    For example:

      cka-probe distill examples/recipes/digits.toml

      cka-probe distill examples/recipes/digits.toml --method kd --set train.epochs=10 --seed 1
    """
    from ..distill.recipes.experiment import run_directory, run_recipe

    chosen = _load(recipe, changes, output)
    chosen = chosen.with_method(method or chosen.loss.name, seed)
    directory = run_directory(chosen)
    try:
        result = run_recipe(chosen, resume=not fresh, progress=_progress(quiet))
    except KeyboardInterrupt:
        _stopped(f"the files of the run are in {directory}")
    _leave_process_group()
    if not _is_main_process():
        return
    if as_json:
        typer.echo((directory / "result.json").read_text())
        return
    say(
        f"{chosen.name}, {chosen.loss.name}, seed {chosen.train.seed}: "
        f"test accuracy last {result.last_accuracy:.2%}, best {result.best_accuracy:.2%} (epoch {result.best_epoch})"
        + ("" if result.teacher_score is None else f"; the teacher has {result.teacher_score:.2%}")
    )
    for note in result.notes:
        say(f"note: {note}")
    say(f"weights, history, recipe and model card (student.md): {directory}")


def distill_table(
    recipes: Annotated[list[Path], typer.Argument(help="TOML recipes; each gives a block of rows.")],
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; rcka+kd is the sum of two.")
    ] = "ce,kd,rcka",
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each method, with seeds 0, 1, ...")] = 5,
    against: Annotated[
        str | None, typer.Option(help="Method that the others are compared with. By default kd, else the first method.")
    ] = None,
    changes: Changes = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of runs and table. By default that of the recipes.")
    ] = None,
    fresh: Fresh = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run every method with every seed and print a table: mean and deviation, last and best, and a paired test.

    Finished runs are not repeated. If a command was stopped, the same command continues it.

    For example:

      cka-probe distill-table examples/recipes/digits.toml --methods ce,kd,fcka,lcka,rcka --seeds 5
    """
    from ..distill.recipes.tables import format_markdown, run_grid, save_table, summarise

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ValueError("--methods names no method.")
    against = against or ("kd" if "kd" in names else names[0])
    if against not in names:
        raise ValueError(f"--against {against} is not among --methods {','.join(names)}.")
    chosen = [_load(path, changes, output) for path in recipes]
    folder = chosen[0].output.directory / "table"
    try:
        runs = run_grid(chosen, names, range(seeds), resume=not fresh, progress=_progress(quiet))
    except KeyboardInterrupt:
        _stopped(f"finished runs are in {chosen[0].output.directory}")
    _leave_process_group()
    table = summarise(runs, chosen, against if len(names) > 1 else None)
    if not _is_main_process():
        return
    paths = save_table(table, runs, folder, against)
    if as_json:
        typer.echo(json.dumps(json.loads(table.to_json(orient="records"))))
        return
    say(format_markdown(table, against), end="")
    if seeds > 1 and len(names) > 1:
        say(f"p: paired t-test of the last accuracy against {against} over {seeds} seeds, adjusted by Holm.")
    say(f"files: {', '.join(map(str, paths))}")


def new(
    teacher: Annotated[
        str, typer.Argument(help="resnet56, torchvision:NAME, timm:NAME, hf:FOLDER or file.py:function")
    ],
    student: Annotated[str, typer.Argument(help="The network that is trained, named in the same way.")],
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion_mnist, a folder (your images in train/CLASS and test/CLASS, CIFAR, Tiny ImageNet, a "
            "data set of Hugging Face on disk), imagenet:FOLDER, or file.py:function"
        ),
    ] = "digits",
    weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="The file of the teacher's weights.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of the images.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. By default TEACHER_STUDENT.toml, here.")
    ] = None,
) -> None:
    """Write a commented recipe for two networks, which runs as it is. A file that exists is not replaced.

    For example:

      cka-probe recipe new resnet20 resnet8 --data my_photos -o photos.toml

      cka-probe distill photos.toml
    """
    from ..distill.recipes.new_recipe import data_of, new_recipe, write_recipe

    path = output or Path(f"{_file_name(teacher)}_{_file_name(student)}.toml")
    if path.exists():
        raise ValueError(f"{path} exists. Choose another name with -o, or remove it.")
    text = new_recipe(teacher, student, data_of(data, size), teacher_weights=weights, name=str(path))
    write_recipe(path, text)
    say(f"{path} is written. Train with: cka-probe distill {path}")


def _file_name(network: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "_", network.rpartition(":")[2]).strip("_") or "network"


def _load(path: Path, changes: list[str] | None, output: Path | None) -> Any:
    from ..distill.recipes.recipe import Recipe

    extra = [] if output is None else [f"output.directory={json.dumps(str(output))}"]
    return Recipe.load(path, [*(changes or []), *extra])


def _is_main_process() -> bool:
    """Whether this is the main process of those that torchrun or accelerate started. Only it prints."""
    return os.environ.get("RANK", "0") == "0"


def _leave_process_group() -> None:
    """End the process group of accelerate: a process that exits while threads of gloo run may abort."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def _stopped(where: str) -> None:
    say(f"Stopped; {where}. The same command continues from there.", error=True)
    raise typer.Exit(130)
