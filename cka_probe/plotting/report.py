"""One self-contained, interactive HTML file of results: it opens anywhere, offline, and says how it was made."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from ..similarity.matrix import SimilarityMatrix
from .heatmap import CMAP
from .scale import colour_limits, measure_label

__all__ = ["write_report"]


def write_report(
    results: SimilarityMatrix | Mapping[str, SimilarityMatrix],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    level: float = 0.95,
) -> Path:
    """The path of the HTML file to which the results were written, whole or not at all.

    The file holds an interactive heatmap (hovering shows layers, value, interval and p-value), selectors for the
    measure and the pair of models where there are several, a table of all pairs of layers that sorts and filters, the
    notes, and how the numbers were made. plotly.js is part of it (about 5 MB): nothing is fetched from anywhere.

    Parameters
    ----------
    results : SimilarityMatrix, or dict of name to SimilarityMatrix
        What to report. A matrix of several models can be seen as a whole and pair by pair. Matrices of one measure
        share one colour scale.
    path : str or path
        Where to write. An existing file is replaced.
    title : str, optional
        Heading; by default the measures and models.
    level : float
        Confidence of the intervals.

    Returns
    -------
    pathlib.Path
        Where the file lies.

    Raises
    ------
    ModuleNotFoundError
        If plotly is not installed.
    TypeError
        If `results` holds something else than SimilarityMatrix.
    ValueError
        If there are no results, one is empty, or `level` is not strictly between 0 and 1.
    FileNotFoundError
        If the directory does not exist.

    Examples
    --------
    >>> import tempfile
    >>> matrix = SimilarityMatrix([[1.0, 0.5]], ["conv1"], ["stem", "head"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(matrix, f"{folder}/report.html").name
    'report.html'
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ModuleNotFoundError(
            'The HTML report needs plotly. Install it: pip install "cka-probe[report]".'
        ) from error

    named = results if isinstance(results, Mapping) else {"result": results}
    if not named:
        raise ValueError("There is nothing to report: `results` is empty.")
    for name, matrix in named.items():
        if not isinstance(matrix, SimilarityMatrix):
            raise TypeError(f"`results` must hold SimilarityMatrix; {name!r} is {type(matrix).__name__}.")
        if not matrix.values.size:
            raise ValueError(f"There is nothing to report: {name!r} has shape {matrix.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie strictly between 0 and 1, got {level}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: there is no directory {path.parent}. Create it first.")

    views = [view for i, (name, matrix) in enumerate(named.items()) for view in _views(i, str(name), matrix)]
    same = {m: [other for other in named.values() if other.measure == m] for m in {x.measure for x in named.values()}}
    data = {
        "level": f"{100 * level:g} %",
        "colours": _colours(CMAP),
        "error_colours": _colours("cividis"),
        "results": [_result(str(name), matrix, same[matrix.measure], level) for name, matrix in named.items()],
        "views": views,
    }
    # In a script element only "<" can end the element, whatever a layer is called.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    heading = html.escape(title if title is not None else _heading(views))
    page = (files("cka_probe.plotting") / "report_template.html").read_text(encoding="utf-8")
    # The big parts last and each once: what they contain is not searched for the marks of the others.
    before, after = page.replace("@TITLE@", heading).split("@PLOTLY@")
    between, end = after.split("@DATA@")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([before, get_plotlyjs(), between, encoded, end])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _colours(name: str) -> list[tuple[float, str]]:
    """Matplotlib's colours for plotly, so that the report looks like the pictures."""
    places = np.linspace(0, 1, 65)
    return [(float(place), to_hex(colour)) for place, colour in zip(places, mpl.colormaps[name](places), strict=True)]


def _heading(views: list[dict[str, Any]]) -> str:
    measures = ", ".join(dict.fromkeys(view["measure"] for view in views))
    pairs = list(dict.fromkeys(view["pair"] for view in views))
    return f"{measures}: {pairs[0]}" if len(pairs) == 1 else f"{measures} of {len(pairs)} pairs of models"


def _views(index: int, name: str, matrix: SimilarityMatrix) -> list[dict[str, Any]]:
    """What can be chosen of one result: all of it, and each pair of models in it."""
    rows, columns = list(range(matrix.shape[0])), list(range(matrix.shape[1]))
    of_rows = matrix.row_models or (str(matrix.meta.get("model_x") or "rows"),) * len(rows)
    of_columns = matrix.column_models or (str(matrix.meta.get("model_y") or "columns"),) * len(columns)
    row_names, column_names = list(dict.fromkeys(of_rows)), list(dict.fromkeys(of_columns))
    common = {"result": index, "source": name, "measure": measure_label(matrix)}
    views: list[dict[str, Any]] = []
    several = len(row_names) > 1 or len(column_names) > 1
    if several:
        whole = {"pair": "all models", "row_name": "", "column_name": "", "short_labels": False}
        models = {"row_models": list(of_rows), "column_models": list(of_columns)}
        views.append(common | whole | models | {"rows": rows, "columns": columns})
    for x in row_names:
        for y in column_names:
            pair = {"pair": f"{x} × {y}", "row_name": x, "column_name": y, "short_labels": True}
            chosen = {
                "rows": [i for i in rows if of_rows[i] == x],
                "columns": [i for i in columns if of_columns[i] == y],
            }
            views.append(common | pair | chosen | {"row_models": None, "column_models": None})
    return views


def _result(name: str, matrix: SimilarityMatrix, same: list[SimilarityMatrix], level: float) -> dict[str, Any]:
    """All numbers of a matrix as JSON, undefined ones as null."""
    arrays = {"values": matrix.values, "standard_error": matrix.standard_error, "p_value": matrix.p_value}
    arrays |= {"chance": matrix.chance, "low": None, "high": None}
    if matrix.standard_error is not None:
        arrays["low"], arrays["high"] = matrix.interval(level)
    chance_range = None
    if matrix.chance is not None and np.isfinite(matrix.chance).any():
        first, last = float(np.nanmin(matrix.chance)), float(np.nanmax(matrix.chance))
        chance_range = [[first, "chance"]] if first == last else [[first, "chance from"], [last, "chance to"]]
    errors = [m.standard_error for m in same if m.standard_error is not None]
    finite = [error[np.isfinite(error)].max(initial=0) for error in errors]
    return {
        **{key: None if array is None else _listed(array) for key, array in arrays.items()},
        "rows": matrix.rows,
        "columns": matrix.columns,
        "row_labels": matrix.row_labels,
        "column_labels": matrix.column_labels,
        "measure": measure_label(matrix),
        "notes": matrix.notes,
        "chance_range": chance_range,
        "limits": {
            "values": colour_limits(same),
            "standard_error": [0.0, float(max(finite, default=0)) or 1.0],
            "p_value": [0.0, 1.0],
        },
        "made": _made(name, matrix),
    }


def _listed(array: NDArray[np.float64]) -> list[list[float | None]]:
    # Seven digits: more than any figure or table shows, and a third of the size of all of them.
    return [[float(f"{value:.7g}") if np.isfinite(value) else None for value in row] for row in array.tolist()]


def _made(name: str, matrix: SimilarityMatrix) -> list[tuple[str, str]]:
    """Name and text of each line of "how it was made"."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    try:
        written_by = f"cka_probe {version('cka-probe')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        written_by = "cka_probe"
    lines = [("result", name), ("measure", measure_label(matrix))]
    lines += [(key.replace("_", " "), text(value)) for key, value in matrix.meta.items()]
    return lines + [("report written by", written_by)]
