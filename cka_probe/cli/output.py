"""What `cka-probe compare` makes of a result: the picture, the table, JSON, and the comparison of two results."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_write import atomic_write

if TYPE_CHECKING:
    from ..similarity.matrix import SimilarityMatrix

__all__ = ["as_json", "change_text", "check_output", "draw", "draw_change", "limits_of", "named"]

SCALES = ("auto", "full", "data", "chance")


def check_output(output: Path | None, plot: Path | None, csv: Path | None, *, quiet: bool, json: bool) -> None:
    """Raise an error before anything runs if the result could not be written, or would be lost.

    Parameters
    ----------
    output, plot, csv : Path, optional
        Files to write.
    quiet, json : bool
        Whether nothing is printed, and whether JSON is.

    Raises
    ------
    ValueError
        If a file has an ending of another format, or nothing would be shown or written.
    FileNotFoundError
        If the folder of a file does not exist.
    """
    if quiet and not json and output is None and plot is None and csv is None:
        raise ValueError("--quiet prints no summary, and no file is asked for. Give --output, --plot, --csv or --json.")
    if output is not None and output.suffix != ".npz":
        raise ValueError(f"--output must end in .npz, got {output}. Use --plot for a picture and --csv for a table.")
    if csv is not None and csv.suffix.lower() != ".csv":
        raise ValueError(f"--csv must end in .csv, got {csv}.")
    if plot is not None:
        from matplotlib.figure import Figure

        kinds = Figure().canvas.get_supported_filetypes()
        if plot.suffix[1:].lower() not in kinds:
            raise ValueError(f"--plot must end in one of .{', .'.join(sorted(kinds))}; got {plot}.")
    for path in (output, plot, csv):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")


def limits_of(text: str) -> str | tuple[float, float]:
    """The colour scale that a text names: "auto", "full", "data", "chance" or two numbers.

    Parameters
    ----------
    text : str
        The text after --limits.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> limits_of("data"), limits_of("0.5,1")
    ('data', (0.5, 1.0))
    """
    if text in SCALES:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ValueError(f'--limits must be one of {", ".join(SCALES)}, or two numbers such as "0.5,1"; got {text!r}.')
    return low, high


def named(result: SimilarityMatrix, names: tuple[str, str] | None) -> SimilarityMatrix:
    """The result with other names of its two models.

    Parameters
    ----------
    result : SimilarityMatrix
        The result.
    names : pair of str, optional
        Names of the models of rows and columns.

    Raises
    ------
    ValueError
        If the result holds several models on a side.
    """
    if names is None:
        return result
    if result.row_models is not None or result.column_models is not None:
        raise ValueError("--names gives the names of two models; this result holds several, which have names already.")
    from ..similarity.selection import changed

    return changed(result, meta=result.meta | {"model_x": names[0], "model_y": names[1]})


def draw(result: SimilarityMatrix, path: Path, options: Mapping[str, Any]) -> None:
    """Write the heatmap of a result.

    Parameters
    ----------
    result : SimilarityMatrix
        The result.
    path : Path
        The picture.
    options : mapping
        Title and limits.
    """
    _write(result.plot(**options).figure, path)


def draw_change(
    before: SimilarityMatrix, after: SimilarityMatrix, names: tuple[str, str], path: Path, limits: Any
) -> None:
    """Write the heatmaps of two results and of their difference.

    Parameters
    ----------
    before, after : SimilarityMatrix
        The results.
    names : pair of str
        Their titles.
    path : Path
        The picture.
    limits : str or pair of float
        Colour scale of the first two.
    """
    from ..plotting import plot_before_after

    _write(plot_before_after(before, after, titles=names, limits=limits)[0].figure, path)


def _write(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    try:
        atomic_write(path, partial(figure.savefig, format=path.suffix[1:].lower(), dpi=200))
    finally:
        plt.close(figure)


def change_text(before: SimilarityMatrix, after: SimilarityMatrix, names: tuple[str, str]) -> str:
    """What changed between two results of the same layers: mean, and the pairs that changed most.

    Parameters
    ----------
    before, after : SimilarityMatrix
        The results.
    names : pair of str
        Their names.

    Raises
    ------
    ValueError
        If measures or layers differ.
    """
    import numpy as np

    if before.measure != after.measure:
        raise ValueError(f"{names[0]} holds {before.measure} and {names[1]} {after.measure}: they cannot be compared.")
    for side in ("row_labels", "column_labels"):
        if getattr(before, side) != getattr(after, side):
            raise ValueError(
                f"{names[0]} and {names[1]} have other {side.split('_')[0]}s, so their cells have no counterparts. "
                f"`cka-probe report {names[0]} {names[1]}` shows both in one page."
            )
    change = after.values - before.values
    known = np.isfinite(change)
    title = f"{names[1]} minus {names[0]}: {before.measure}, {change.shape[0]} x {change.shape[1]} layers"
    if not known.any():
        return f"{title}\n  all undefined"
    lines = [
        title,
        f"  mean change   {change[known].mean():+.3f}, from {change[known].min():+.3f} to {change[known].max():+.3f}",
    ]
    order = np.argsort(np.where(known, -np.abs(change), np.inf), axis=None)[: min(5, int(known.sum()))]
    for place in order.tolist():
        r, c = divmod(place, change.shape[1])
        values = f"{before.values[r, c]:.3f} to {after.values[r, c]:.3f}"
        lines.append(f"  {change[r, c]:+.3f}        {before.row_labels[r]} x {before.column_labels[c]} ({values})")
    missing = int((~known).sum())
    return "\n".join([*lines, *([f"  undefined     {missing} of {change.size}"] if missing else [])])


def as_json(result: SimilarityMatrix) -> dict[str, Any]:
    """The result as JSON types, with null for NaN.

    Parameters
    ----------
    result : SimilarityMatrix
        The result.
    """
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
        **({"extra": {name: listed(array) for name, array in result.extra.items()}} if result.extra else {}),
        "notes": list(result.notes),
        "meta": result.meta,
    }
