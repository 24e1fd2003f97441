"""Write results as one self-contained, interactive HTML file, which opens offline and says how they were made."""

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

from ..atomic_write import atomic_write
from ..capture.extras import require
from ..similarity.matrix import SimilarityMatrix
from ..similarity.tables import is_self_comparison
from ..similarity.text import P_RESOLUTION, printable
from .canvas import check_fraction
from .heatmap import CMAP
from .maps import map_positions
from .scale import colour_limits, measure_label

__all__ = ["write_report"]

LARGE = 1_000_000
"""Cells of a result from which on a page holds only the values; more would be hundreds of megabytes."""


def write_report(
    results: SimilarityMatrix | Mapping[str, SimilarityMatrix],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    level: float = 0.95,
    distances: SimilarityMatrix | None = None,
) -> Path:
    """Write results to an HTML file and return its path.

    The file holds an interactive heatmap (the mouse shows layers, value, interval and p-value), selectors for
    measures and pairs of models if there are several, a second result beside it or their difference, a filter for map
    and table, the range of the colours, marks of the best matches, a table of all pairs of layers to sort, downloads
    (CSV, SVG, PNG), the notes, what the numbers mean, and how they were made. A result of more than a million cells
    is shown without errors and p-values. The file contains plotly.js (about 5 MB) and loads nothing from the network.

    Parameters
    ----------
    results : SimilarityMatrix, or dict of name to SimilarityMatrix
        Results to report. A matrix of several models can be viewed as a whole and pair by pair. Matrices of one measure
        share one colour scale.
    path : str or path
        Path of the file. An existing file is replaced; after an error it is as it was before.
    title : str, optional
        Heading; by default the measures and models.
    level : float
        Confidence level of the intervals.
    distances : SimilarityMatrix, optional
        Distances between models of the results, as ``Atlas.distances`` gives them: the page shows their map, and clicks
        on two models open the heatmap of their layers. The map needs scikit-learn.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    ModuleNotFoundError
        If plotly is not installed, or scikit-learn for the map.
    TypeError
        If `results` holds anything other than SimilarityMatrix.
    ValueError
        If there are no results, one is empty, `level` is not strictly between 0 and 1, or `distances` are no distances,
        are undefined, or are of models without a result.
    OSError
        If the file cannot be written: its folder does not exist or is read-only, or the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> matrix = SimilarityMatrix([[1.0, 0.5]], ["conv1"], ["stem", "head"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(matrix, f"{folder}/report.html").name
    'report.html'
    """
    require("plotly", "report", "write_report()")
    from plotly.offline import get_plotlyjs

    named = results if isinstance(results, Mapping) else {"result": results}
    if not named:
        raise ValueError("There is nothing to report: `results` is empty.")
    for name, matrix in named.items():
        if not isinstance(matrix, SimilarityMatrix):
            raise TypeError(f"`results` must hold SimilarityMatrix; {name!r} is {type(matrix).__name__}.")
        if not matrix.values.size:
            raise ValueError(f"There is nothing to report: {name!r} has shape {matrix.shape}.")
    check_fraction("level", level)

    views = [view for i, (name, matrix) in enumerate(named.items()) for view in _views(i, str(name), matrix)]
    same = {m: [other for other in named.values() if other.measure == m] for m in {x.measure for x in named.values()}}
    data = {
        "level": f"{100 * level:g} %",
        "p_resolution": P_RESOLUTION,
        "colours": _colours(CMAP),
        "error_colours": _colours("cividis"),
        "difference_colours": _colours("RdBu_r"),
        "results": [_result(str(name), matrix, same[matrix.measure], level) for name, matrix in named.items()],
        "views": views,
        "map": None if distances is None else _map(distances, views),
    }
    # Only "<" can end a script element; it is escaped, so no layer name can break the page.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    heading = html.escape(title if title is not None else _heading(views))
    page = (files("cka_probe.plotting") / "report_template.html").read_text(encoding="utf-8")
    # The template is split before plotly.js and the data go in, because they may contain marks such as "@DATA@" too.
    before, after = page.split("@PLOTLY@")
    between, end = after.split("@DATA@")
    before = before.replace("@TITLE@", heading)
    parts = (before, get_plotlyjs(), between, encoded, end)
    atomic_write(path, "".join(parts))
    return Path(path)


def _map(distances: SimilarityMatrix, views: list[dict[str, Any]]) -> dict[str, Any]:
    """Positions of the models for the map."""
    if not isinstance(distances, SimilarityMatrix):
        raise TypeError(f"`distances` must be a SimilarityMatrix of models, got {type(distances).__name__}.")
    known = {view["row_name"] for view in views} & {view["column_name"] for view in views}
    lost = [name for name in distances.rows if name not in known]
    if lost:
        raise ValueError(f"`distances` has the model {lost[0]!r}, of which `results` holds no layers.")
    positions, stress = map_positions(distances)
    return {
        "names": list(distances.rows),
        "labels": list(map(printable, distances.rows)),
        "x": positions[:, 0].round(6).tolist(),
        "y": positions[:, 1].round(6).tolist(),
        "stress": f"{stress:.2f}",
    }


def _colours(name: str) -> list[tuple[float, str]]:
    """Colours of a matplotlib colour map in plotly's format, so that report and pictures look the same."""
    places = np.linspace(0, 1, 65)
    return [(float(place), to_hex(colour)) for place, colour in zip(places, mpl.colormaps[name](places), strict=True)]


def _heading(views: list[dict[str, Any]]) -> str:
    measures = ", ".join(dict.fromkeys(view["measure"] for view in views))
    pairs = list(dict.fromkeys(view["pair"] for view in views))
    return f"{measures}: {pairs[0]}" if len(pairs) == 1 else f"{measures} of {len(pairs)} pairs of models"


def _views(index: int, name: str, matrix: SimilarityMatrix) -> list[dict[str, Any]]:
    """Views of one result: the whole matrix if it has several models, and each pair of models."""
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
    """All numbers of a matrix in the form of JSON; undefined ones are None."""
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
    notes = list(map(printable, matrix.notes))
    if matrix.values.size > LARGE:
        arrays = {key: array if key == "values" else None for key, array in arrays.items()}
        chance_range = None
        notes.append(
            f"This result has {matrix.values.size:,} cells, so this page holds its values only: errors, intervals, "
            "p-values and chance levels are in the result itself"
        )
    return {
        **{key: None if array is None else _listed(array) for key, array in arrays.items()},
        "rows": list(map(printable, matrix.rows)),
        "columns": list(map(printable, matrix.columns)),
        "row_labels": list(map(printable, matrix.row_labels)),
        "column_labels": list(map(printable, matrix.column_labels)),
        "measure": measure_label(matrix),
        "notes": notes,
        "chance_range": chance_range,
        "limits": {
            "values": colour_limits(same),
            "standard_error": [0.0, float(max(finite, default=0)) or 1.0],
            "p_value": [0.0, 1.0],
        },
        "made": _made(name, matrix),
        "meaning": _meaning(matrix, level),
        "is_distance": matrix.is_distance,
        "itself": is_self_comparison(matrix),
    }


def _meaning(matrix: SimilarityMatrix, level: float) -> list[str]:
    """What the numbers mean: a sentence on the measure, one on chance and one on errors and p-values."""
    name = measure_label(matrix)
    if matrix.measure == "cka":
        first = (
            f"{name} compares how two layers arrange the same samples: 1 means the same arrangement up to rotation and "
            "scale, 0 nothing in common."
        )
    else:
        first = f"{name}: {'smaller' if matrix.is_distance else 'larger'} values mean that two layers are more alike."
    chance = (
        "The chance level is the value that two layers with nothing in common would have with as many samples; a value "
        "near it shows no similarity."
    )
    if matrix.chance is None and matrix.meta.get("estimator") == "unbiased":
        chance = "Layers with nothing in common have the value 0 on average, however few the samples are."
    elif matrix.chance is None:
        chance = "The chance level, the value of layers with nothing in common, was not computed here."
    p = (
        "The p-value is the probability of a value at least this high between layers with nothing in common; it does "
        "not say how similar they are."
    )
    if matrix.p_value is None:
        p = "No p-values were computed, so the page does not say which values could be chance."
    if matrix.standard_error is not None:
        p += f" The {100 * level:g} % interval says how much a value would vary with other samples."
    return [first, chance, p]


def _listed(array: NDArray[np.float64]) -> list[list[float | None]]:
    # Seven digits are more than any figure or table shows, and make the file three times smaller than all digits.
    return [[float(f"{value:.7g}") if np.isfinite(value) else None for value in row] for row in array.tolist()]


def _made(name: str, matrix: SimilarityMatrix) -> list[tuple[str, str]]:
    """Name and text of each row of the table "How it was made"."""

    def text(value: Any) -> str:
        return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    try:
        written_by = f"cka_probe {version('cka-probe')}"
    except PackageNotFoundError:  # the package is used without being installed
        written_by = "cka_probe"
    lines = [("result", printable(name)), ("measure", measure_label(matrix))]
    lines += [(printable(key.replace("_", " ")), text(value)) for key, value in matrix.meta.items()]
    return lines + [("report written by", written_by)]
