"""`cka-probe report`: write saved results as one interactive HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import say

__all__ = ["report"]


def report(
    results: Annotated[list[Path], typer.Argument(help="Files written by `cka-probe compare -o` or by .save().")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the report.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading. By default the measures and models.")] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals, between 0 and 1.")] = 0.95,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write saved results as one interactive HTML file that works offline.

    The pointer shows layers, value, interval and p-value. Several results get a selector of measure and models.

    For example:

      cka-probe compare resnet8 resnet20 -o result.npz

      cka-probe report result.npz -o report.html

      cka-probe report before.npz after.npz --title "Student and teacher" -o change.html
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must end in .html, got {output}.")

    from ..plotting.report import write_report
    from ..similarity.matrix import SimilarityMatrix

    stems = [path.stem for path in results]
    # Files with the same name in different directories are named by their paths.
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in results]
    if len(set(names)) < len(names):
        raise ValueError(f"The same file is given twice: {next(n for n in names if names.count(n) > 1)}.")
    loaded = {name: SimilarityMatrix.load(path) for name, path in zip(names, results, strict=True)}
    written = write_report(loaded, output, title=title, level=level)
    if not quiet:
        say(f"report: {written} (open it in a browser)")
