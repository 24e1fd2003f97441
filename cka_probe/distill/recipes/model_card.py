"""The model card of a run, `student.md`: what the student is, how good, how it was made, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...comparison.models import compare
from ...similarity.text import printable
from ..models.saved_student import is_code
from ..training.batch_parts import split_batch
from ..training.result import DistillationResult

__all__ = ["CARD", "Similarities", "measured_similarities", "model_card"]

CARD = "student.md"
"""Name of the model card in the folder of a run."""

SAMPLES = 512
"""Test samples for the similarity of teacher and student."""


@dataclass(frozen=True)
class Similarities:
    """CKA of each pair of layers before and after training; or why there is none."""

    pairs: Sequence[tuple[str, str]] = ()
    before: Sequence[float] = ()
    after: Sequence[float] = ()
    reason: str = ""
    samples: int = field(default=SAMPLES)


def model_card(facts: Mapping[str, Any], similarities: Similarities | None, recipe: str, folder: Path) -> str:
    """The model card as Markdown.

    Parameters
    ----------
    facts : mapping
        title (of the method), seed, student, teacher (None for labels alone), data, train_samples, test_samples,
        classes (names), num_classes, result (of the run), environment.
    similarities : Similarities, optional
        Of teacher and student; None without a teacher.
    recipe : str
        The recipe as TOML.
    folder : Path
        The folder of the run.

    Returns
    -------
    str
        Ends with a line break.
    """
    student = facts["student"]
    parts = [
        f"# {_text(student)}, trained by {_text(facts['title'])}",
        _paragraph(facts),
        "## Load it",
        _code(student, folder, facts["num_classes"]),
        "## Scores",
        _scores(facts),
    ]
    if similarities is not None:
        parts += ["## Similarity of teacher and student", _similarity_table(similarities)]
    if facts["result"].notes:
        parts += ["## Notes", "\n".join(f"- {_text(note)}" for note in facts["result"].notes)]
    versions = facts["environment"]["versions"]
    git = facts["environment"]["git"]
    parts += ["## Made with", ", ".join(f"{name} {number}" for name, number in versions.items()) + "."]
    if git is not None:
        parts.append(f"Git commit {git['commit']}{', with changes' if git['changed'] else ''}.")
    fence = "`" * max(3, 1 + max((len(run) for run in _runs_of_ticks(recipe)), default=0))
    parts += ["## Recipe", f"{fence}toml\n{recipe.rstrip()}\n{fence}"]
    return "\n\n".join(parts) + "\n"


def measured_similarities(
    teacher: nn.Module,
    before: nn.Module,
    after: nn.Module,
    layers: tuple[Sequence[str], Sequence[str]],
    data: Dataset[Any] | DataLoader[Any],
    batch_size: int,
) -> Similarities:
    """CKA of pairs of layers on the first test samples, of the student before and after training.

    Parameters
    ----------
    teacher, before, after : torch.nn.Module
        The teacher, and the student with its first and with its best weights.
    layers : tuple of two lists of str
        Layers of the student and of the teacher, pair by pair; empty for a loss of logits, whose outputs are compared.
    data : Dataset or DataLoader
        The test data.
    batch_size : int
        Samples in a batch.
    """
    pairs = list(zip(*layers, strict=True)) or [("", "")]
    found: list[list[float]] = []
    try:
        for student in (before, after):
            loader = data if isinstance(data, DataLoader) else DataLoader(data, max(batch_size, 64))
            result = compare(
                teacher,
                student,
                _first_inputs(loader),
                layers=[pair[1] for pair in pairs] if layers[0] else "",
                layers_y=[pair[0] for pair in pairs] if layers[0] else "",
                progress=False,
            )
            rows, columns = list(result.rows), list(result.columns)
            places = [(rows.index(y), columns.index(x)) for x, y in pairs] if layers[0] else [(0, 0)]
            found.append([float(result.values[place]) for place in places])
    except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        # A card without this table is better than a finished run without a card.
        return Similarities(reason=str(error))
    shown = pairs if layers[0] else [("logits", "logits")]
    return Similarities(shown, *found)


def _first_inputs(loader: DataLoader[Any]) -> Any:
    seen = 0
    for batch in loader:
        inputs, target = split_batch(batch)
        # `compare` would read a list as (input, target); a tuple goes to networks of several inputs.
        yield inputs if isinstance(inputs, (Tensor, dict)) else (*inputs,)
        seen += len(target)
        if seen >= SAMPLES:
            return


def _paragraph(facts: Mapping[str, Any]) -> str:
    teacher = facts["teacher"]
    about = "It learned from the labels alone." if teacher is None else f"Its teacher is {_text(teacher)}."
    classes = facts["classes"]
    names = f": {', '.join(map(_text, classes[:20]))}{' ...' if len(classes) > 20 else ''}" if classes else ""
    return (
        f"A {_text(student_name(facts['student']))} with {facts['num_classes']} outputs{names}. {about} Data: "
        f"{_text(facts['data'])}, {facts['train_samples']} training and {facts['test_samples']} test samples. "
        f"Seed {facts['seed']}."
    )


def student_name(source: str) -> str:
    """The name of a network without the library: "resnet18" of "torchvision:resnet18"."""
    return source if is_code(source) else source.partition(":")[2] or source


def _code(student: str, folder: Path, classes: int) -> str:
    lines = ["from cka_probe.distill import load_student"]
    if is_code(student):
        lines += [
            "from cka_probe.distill.models.sources import load_model",
            "",
            f"student = load_student({folder.as_posix()!r}, model=load_model({student!r}))",
        ]
    else:
        lines += ["", f"student = load_student({folder.as_posix()!r})"]
    code = "\n".join(lines)
    return (
        f"```python\n{code}\n```\n\nThe network is in eval mode on the CPU and returns {classes} logits. Give it "
        "inputs as the test data of the recipe makes them: the same size, the same normalisation."
    )


def _scores(facts: Mapping[str, Any]) -> str:
    result: DistillationResult = facts["result"]
    last = int(result.history["epoch"].iloc[-1])
    if result.score_column is None:
        return f"None: the run had no test data. It ended after epoch {last}."
    accuracy = result.score_column == "test_accuracy"
    rows = [
        ("teacher (the ceiling)", result.teacher_score),
        (f"student, best (epoch {result.best_epoch})", result.best_score),
        (f"student, last (epoch {last})", result.last_score),
    ]
    lines = [
        f"| {name} | {f'{value:.2%}' if accuracy else f'{value:.6g}'} |" for name, value in rows if value is not None
    ]
    after = "The best epoch was chosen on the test data, so its score is slightly too good."
    return "\n".join([f"| network | {_text(result.score_column.replace('_', ' '))} |", "|---|---:|", *lines, "", after])


def _similarity_table(similarities: Similarities) -> str:
    if similarities.reason:
        return f"Not measured: {_text(similarities.reason)}"
    rows = [
        f"| {_text(x)} | {_text(y)} | {before:.3f} | {after:.3f} |"
        for (x, y), before, after in zip(similarities.pairs, similarities.before, similarities.after, strict=True)
    ]
    heading = ["| student | teacher | before training | after (best weights) |", "|---|---|---:|---:|"]
    about = f"CKA on the first {similarities.samples} test samples (fewer if there are not so many); 1 is the same."
    return "\n".join([*heading, *rows, "", about])


def _text(text: str) -> str:
    """Text that cannot become Markdown or HTML."""
    return "".join(f"\\{c}" if c in "\\`*[]<>|#&" else c for c in printable(str(text)))


def _runs_of_ticks(text: str) -> list[str]:
    return re.findall("`+", text)
