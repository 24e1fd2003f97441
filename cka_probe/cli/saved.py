"""Files given to `cka-probe compare`: features, signatures, or the saved result of a comparison."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .terminal import say

if TYPE_CHECKING:
    from ..similarity.matrix import SimilarityMatrix

__all__ = ["compare_files", "compare_results", "kind_of_file", "measure_options"]

# What each kind of file is, for messages.
KINDS = {
    "features": "a file of features",
    "signature": "the signature of a network",
    "result": "the saved result of a comparison",
    "network": "a network",
}

# Options that apply to each kind of file. The others would be ignored, so they are refused.
ALWAYS = {"model_x", "model_y", "names", "output", "csv", "plot", "title", "limits", "as_json", "quiet"}
OF_TWO = {"model_x", "model_y", "names", "csv", "plot", "limits", "as_json", "quiet"}
OPTIONS = {
    "features": ALWAYS | {"kernel", "estimator", "scope", "measure", "option"},
    "signature": ALWAYS,
    "result": ALWAYS,
}
REASONS = {
    "features": "for networks only. Files of features have their own layers and samples.",
    "signature": "for networks only. A signature has its own layers, samples, kernel and estimator.",
    "result": "for networks only. A saved result is shown as it is.",
}


def kind_of_file(source: str) -> str:
    """What the file is: "features", "signature", "result" or "network" (the text names no file of arrays).

    Parameters
    ----------
    source : str
        An argument of `cka-probe compare`.

    Raises
    ------
    ValueError
        If the file is the checkpoint of an unfinished comparison.
    """
    from ..comparison import checkpoint, signature_files
    from ..similarity import files
    from .inputs import FEATURE_FILES

    path = Path(source)
    if path.suffix not in FEATURE_FILES:
        return "network"
    if path.suffix == ".npz" and path.is_file():
        written = _format(path)
        if written == checkpoint.FORMAT:
            raise ValueError(
                f"{source} is the checkpoint of an unfinished comparison. Call `cka_probe.compare` again with the same "
                "arguments and checkpoint= to finish it."
            )
        known = {
            files.FORMAT: "result",
            signature_files.FORMAT: "signature",
            signature_files.SKETCH_FORMAT: "signature",
        }
        return known.get(written, "features")
    return "features"


def _format(path: Path) -> str:
    """Name of the format in the header of a file of ours; "" for other files."""
    from ..safe_read import open_npz

    try:
        with open_npz(path) as archive:
            return str(archive.header().get("format", ""))
    except Exception:  # a damaged file: what reads it later says so
        return ""


def compare_files(
    context: typer.Context,
    x: str,
    y: str | None,
    *,
    kernel: str | None,
    estimator: str,
    measure: str,
    options: dict[str, Any],
    quiet: bool,
    progress: bool,
) -> SimilarityMatrix:
    """The result for files: of features, of signatures, or a result that was saved before.

    Parameters
    ----------
    context : typer.Context
        Says which options were given.
    x, y : str
        The files; `y` is None if there is one only.
    kernel, estimator, measure, options, quiet, progress
        Options of `cka-probe compare`.

    Raises
    ------
    ValueError
        If the files are of different kinds, an option does not apply to them, or they cannot be compared.
    FileNotFoundError
        If a file does not exist.
    """
    kinds = [kind_of_file(source) for source in (x, y) if source is not None]
    if "result" in kinds and y is not None:
        at = kinds.index("result")
        raise ValueError(f"{(x, y)[at]} is {KINDS['result']}. Give it alone: it is printed, and drawn with --plot.")
    if len(set(kinds)) > 1:
        both = " and ".join(f"{source} is {KINDS[kind]}" for source, kind in zip((x, y), kinds, strict=True))
        if "network" in kinds:
            other = next(kind for kind in kinds if kind != "network")
            raise ValueError(f"{both}: a network cannot be compared with {KINDS[other]}.")
        raise ValueError(
            f"{both}: both must be of one kind. `cka_probe.signature` makes signatures, `cka_probe.extract` features."
        )
    kind = kinds[0]
    _refuse_other_options(context, kind)
    if kind == "result":
        from ..similarity.matrix import SimilarityMatrix

        result = SimilarityMatrix.load(x)
        if not quiet:
            say(f"{x} is {KINDS[kind]}; nothing is computed.", error=True)
        return result
    if kind == "signature":
        from ..comparison.signature_files import load_signature
        from ..comparison.signature_pairs import compare_signatures

        first = load_signature(x)
        return compare_signatures(first, first if y in (None, x) else load_signature(y))
    from ..comparison.features import compare_features
    from ..estimators.kernels import kernel_from_name
    from .inputs import load_arrays

    return compare_features(
        load_arrays(x),
        None if y in (None, x) else load_arrays(y),
        kernel=None if kernel is None else kernel_from_name(kernel),
        estimator=estimator,
        measure=measure,
        names=(x, y or x),
        progress=progress,
        **options,
    )


def measure_options(written: list[str]) -> dict[str, Any]:
    """Options of the measure from texts NAME=VALUE.

    Raises
    ------
    ValueError
        If a text has no "=", or two give the same option.

    Examples
    --------
    >>> measure_options(["k=5", "form=paper"])
    {'k': 5, 'form': 'paper'}
    """
    options: dict[str, Any] = {}
    for text in written:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ValueError(f"--option {text}: write NAME=VALUE, for example --option k=5.")
        if name in options:
            raise ValueError(f"--option {text}: {name} is given twice.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def compare_results(
    context: typer.Context, paths: tuple[str, str], names: tuple[str, str] | None, *, limits: Any
) -> dict[str, Any]:
    """What changed between two saved results of the same layers; writes the picture and the table that are asked for.

    Parameters
    ----------
    context : typer.Context
        Says which options were given.
    paths : pair of str
        Files of the results.
    names : pair of str, optional
        Names of the results; by default those of the files.
    limits : str or pair of float
        Colour scale of the picture.

    Returns
    -------
    dict
        In JSON types: the text of the change, and the values before, after and their difference.

    Raises
    ------
    ValueError
        If measures or layers differ, or an option does not apply to two results.
    """
    from ..atomic_write import atomic_write
    from ..similarity.matrix import SimilarityMatrix
    from ..similarity.selection import changed
    from ..similarity.text import safe_csv
    from .output import as_json, change_text, draw_change

    given = _given(context)
    idle = [f"--{name.replace('_', '-')}" for name in given if name not in OF_TWO]
    if idle:
        raise ValueError(
            f"{', '.join(idle)} does not apply to two saved results: their difference is shown, not saved."
        )
    before, after = (SimilarityMatrix.load(path) for path in paths)
    called = names or paths
    text = change_text(before, after, called)
    change = after.values - before.values
    csv, plot = context.params["csv"], context.params["plot"]
    if csv is not None:
        import pandas as pd

        rows = [(r, c) for r in before.row_labels for c in before.column_labels]
        table = pd.DataFrame(rows, columns=["row", "column"]).assign(
            before=before.values.ravel(), after=after.values.ravel(), change=change.ravel()
        )
        atomic_write(csv, safe_csv(table))
    if plot is not None:
        draw_change(before, after, called, plot, limits)
    written = [f"{kind}: {path}" for kind, path in (("table", csv), ("picture", plot)) if path is not None]
    values = {"before": before, "after": after, "change": changed(before, values=change)}
    return {
        "text": "\n".join([text, *written]),
        "rows": list(before.row_labels),
        "columns": list(before.column_labels),
        **{name: as_json(matrix)["values"] for name, matrix in values.items()},
    }


def _refuse_other_options(context: typer.Context, kind: str) -> None:
    given = _given(context)
    idle = [f"--{name.replace('_', '-')}" for name in given if name not in OPTIONS[kind]]
    if idle:
        raise ValueError(f"{', '.join(idle)}: {REASONS[kind]}")
    if kind == "features" and context.params["scope"] not in (None, "dataset"):
        raise ValueError('Files of features have no minibatches: --scope must be "dataset", or be left out.')


def _given(context: typer.Context) -> list[str]:
    """Names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
