"""Summary of a similarity matrix as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from .text import p_text, printable

if TYPE_CHECKING:
    from .matrix import SimilarityMatrix

__all__ = ["as_html", "as_text"]

WIDTH = 120
"""Characters of a line of the summary."""
NAME = 40
"""Characters of a layer name or model name in the summary."""
NOTE_LINES = 12
"""Lines of notes in the summary as text."""
NOTES_HTML = 40
"""Notes in the summary as HTML."""


def as_text(matrix: SimilarityMatrix) -> str:
    """Summary as text: measure, range of the values, best matches, settings, and notes in at most twelve lines.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix.
    """
    facts = _facts(matrix)
    width = max(len(name) for name, _ in facts)
    lines = [_title(matrix)] + [f"  {name:<{width}}  {text}" for name, text in facts]
    return "\n".join(lines + _note_lines(matrix.notes, width))


def _note_lines(notes: tuple[str, ...], width: int) -> list[str]:
    """Notes in lines of 120 characters; the last line says how many did not fit."""
    lines: list[str] = []
    for i, note in enumerate(notes):
        wrapped = textwrap.wrap(
            printable(note),
            max(WIDTH, width + 40),
            initial_indent=f"  {'note':<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        left = len(notes) - i
        # The line that counts the others needs room too, unless this note is the last.
        if len(lines) + len(wrapped) > NOTE_LINES - (left > 1):
            if not lines:
                lines, left = wrapped[: NOTE_LINES - 1], left - 1
                end = f"... this note goes on, and there are {left} more" if left else "... this note goes on"
            else:
                end = f"... and {left} more {'note' if left == 1 else 'notes'}"
            return [*lines, f"  {'note':<{width}}  {end}; see result.notes"]
        lines += wrapped
    return lines


def as_html(matrix: SimilarityMatrix) -> str:
    """Heatmap, summary as an HTML table, and the values in a second table that opens on a click.

    Parameters
    ----------
    matrix : SimilarityMatrix
        The matrix.
    """
    facts = _facts(matrix) + [("note", printable(note)) for note in matrix.notes[:NOTES_HTML]]
    if len(matrix.notes) > NOTES_HTML:
        facts.append(("note", f"... and {len(matrix.notes) - NOTES_HTML} more notes; see result.notes"))
    lines = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in facts
    )
    from .tables import with_names

    table = with_names(matrix.to_frame(), printable).to_html(
        max_rows=20, max_cols=20, float_format="{:.3f}".format, na_rep="undefined"
    )
    # Without these classes a notebook would read the text between two "$" of a name as mathematics.
    return (
        f"<div class='tex2jax_ignore mathjax_ignore'><strong>{html.escape(_title(matrix))}</strong>"
        f"{_picture(matrix)}<table>{lines}</table><details><summary>values</summary>{table}</details></div>"
    )


def _picture(matrix: SimilarityMatrix) -> str:
    """The heatmap as an SVG image inside the page; nothing for a matrix without layers."""
    if not all(matrix.shape):
        return ""
    from matplotlib.figure import Figure  # not by pyplot: a notebook would show the figure a second time

    from ..plotting.heatmap import plot_heatmap

    rows, columns = (min(max(size, 4), 16) for size in matrix.shape)
    figure = Figure(figsize=(2.2 + 0.22 * columns, 1.4 + 0.2 * rows), layout="constrained")
    plot_heatmap(matrix, ax=figure.subplots())
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    source = base64.b64encode(picture.getvalue()).decode()
    return f"<div><img alt='heatmap' src='data:image/svg+xml;base64,{source}'/></div>"


def _short(name: str) -> str:
    """The name as it can be printed, cut in the middle if it is too long; more of its end is kept."""
    name = printable(name)
    head = NAME // 3
    return name if len(name) <= NAME else f"{name[:head]}...{name[head + 3 - NAME :]}"


def _title(matrix: SimilarityMatrix) -> str:
    meta = matrix.meta
    title = f"SimilarityMatrix: {printable(matrix.measure)}, {matrix.shape[0]} x {matrix.shape[1]} layers"
    if meta.get("model_x") and meta.get("model_y"):
        title += f" of {printable(str(meta['model_x']))} x {printable(str(meta['model_y']))}"
    return title


def _facts(matrix: SimilarityMatrix) -> list[tuple[str, str]]:
    """Name and text of each line of the summary but the notes."""
    facts = [("values", _range(matrix))]
    if matrix.standard_error is not None and np.isfinite(matrix.standard_error).any():
        facts.append(("standard error", f"up to {np.nanmax(matrix.standard_error):.2g}"))
    if matrix.p_value is not None and np.isfinite(matrix.p_value).any():
        smallest, largest = p_text(float(np.nanmin(matrix.p_value))), p_text(float(np.nanmax(matrix.p_value)))
        facts.append(("p-value", smallest if smallest == largest else f"{smallest} to {largest}"))
    if matrix.chance is not None and np.isfinite(matrix.chance).any():
        low, high = f"{np.nanmin(matrix.chance):.3f}", f"{np.nanmax(matrix.chance):.3f}"
        facts.append(("chance level", low if low == high else f"{low} to {high}"))
    if matrix.extra:
        facts.append(("beside it", printable(f"{', '.join(matrix.extra)}; see .other()")))
    answers = matrix.meta.get("answers")
    if isinstance(answers, dict):
        numbers = {name: value for name, value in answers.items() if isinstance(value, float)}
        facts.append(("answers", ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())))
    facts += _best_matches(matrix)
    meta = matrix.meta
    made = [f"{key} {meta[key]}" for key in ("kernel", "estimator", "scope", "samples", "batches") if key in meta]
    options = meta.get("options")
    if isinstance(options, dict):
        made = [*(f"{name} {value}" for name, value in options.items()), *made]
    if made:
        facts.append(("made with", printable(", ".join(made))))
    return facts


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
    from .tables import best_columns

    best, left_out = best_columns(matrix, itself=False)
    other = " of the others" if left_out else ""
    rows = np.flatnonzero(best >= 0)
    shown = rows if len(rows) <= limit else rows[np.linspace(0, len(rows) - 1, limit).round().astype(int)]
    matches = []
    for r in shown.tolist():
        c = int(best[r])
        text = f"most like {_short(matrix.column_labels[c])}{other} ({matrix.values[r, c]:.3f})"
        matches.append((_short(matrix.row_labels[r]), text))
    more = len(rows) - len(shown)
    return [*matches, ("...", f"{more} more rows; see .best_match()")] if more else matches
