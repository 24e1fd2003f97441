"""Summary of a similarity matrix as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .matrix import SimilarityMatrix

__all__ = ["as_html", "as_text"]


def as_text(matrix: SimilarityMatrix) -> str:
    """Summary as text: measure, range of the values, best matches, settings and notes, one line each.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix.
    """
    facts = _facts(matrix)
    width = max(len(name) for name, _ in facts)
    return "\n".join([_title(matrix)] + [f"  {name:<{width}}  {text}" for name, text in facts])


def as_html(matrix: SimilarityMatrix) -> str:
    """Summary as an HTML table, and the values in a second table that opens on a click.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix.
    """
    lines = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in _facts(matrix)
    )
    table = matrix.to_frame().to_html(max_rows=20, max_cols=20, float_format="{:.3f}".format, na_rep="undefined")
    return (
        f"<div><strong>{html.escape(_title(matrix))}</strong><table>{lines}</table>"
        f"<details><summary>values</summary>{table}</details></div>"
    )


def _title(matrix: SimilarityMatrix) -> str:
    meta = matrix.meta
    title = f"SimilarityMatrix: {matrix.measure}, {matrix.shape[0]} x {matrix.shape[1]} layers"
    if meta.get("model_x") and meta.get("model_y"):
        title += f" of {meta['model_x']} x {meta['model_y']}"
    return title


def _facts(matrix: SimilarityMatrix) -> list[tuple[str, str]]:
    """Name and text of each line of the summary."""
    facts = [("values", _range(matrix))]
    if matrix.standard_error is not None and np.isfinite(matrix.standard_error).any():
        facts.append(("standard error", f"up to {np.nanmax(matrix.standard_error):.2g}"))
    if matrix.chance is not None and np.isfinite(matrix.chance).any():
        facts.append(("chance level", f"{np.nanmin(matrix.chance):.3f} to {np.nanmax(matrix.chance):.3f}"))
    facts += _best_matches(matrix)
    meta = matrix.meta
    made = [f"{key} {meta[key]}" for key in ("kernel", "estimator", "scope", "samples", "batches") if key in meta]
    if made:
        facts.append(("made with", ", ".join(made)))
    return facts + [("note", note) for note in matrix.notes]


def _range(matrix: SimilarityMatrix) -> str:
    values = matrix.values
    defined = values[np.isfinite(values)]
    if not defined.size:
        return "all undefined" if values.size else "none"
    text = f"{defined.min():.3f} to {defined.max():.3f}, median {np.median(defined):.3f}"
    missing = values.size - defined.size
    return f"{text}; {missing} of {values.size} undefined" if missing else text


def _best_matches(matrix: SimilarityMatrix, limit: int = 6) -> list[tuple[str, str]]:
    """Most similar column of each row; without the layer itself if a model is compared with itself."""
    sign = -1 if matrix.is_distance else 1
    compared = np.where(np.isfinite(matrix.values), sign * matrix.values, -np.inf)
    itself = False
    if matrix.row_labels == matrix.column_labels:
        diagonal = np.diag(matrix.values)
        perfect = 0 if matrix.is_distance else 1
        itself = bool(np.allclose(diagonal[np.isfinite(diagonal)], perfect, atol=1e-6))
    if itself:
        np.fill_diagonal(compared, -np.inf)
    matches = []
    for label, row in zip(matrix.row_labels, compared, strict=True):
        if row.size and np.isfinite(row.max()):
            best = int(row.argmax())
            other = " of the others" if itself else ""
            matches.append((label, f"most like {matrix.column_labels[best]}{other} ({sign * row[best]:.3f})"))
    if len(matches) <= limit:
        return matches
    chosen = np.linspace(0, len(matches) - 1, limit).round().astype(int)
    return [matches[i] for i in chosen] + [("...", f"{len(matches) - limit} more rows; see .pairs()")]
