"""The model card of a run, `student.md`: what the student is, how good, how it was made, and how to load it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...atomic_write import atomic_write
from ...comparison.models import compare
from ...similarity.text import printable
from .batch_parts import samples_in, split_batch
from .environment import versions
from .result import DistillationResult
from .run_identity import samples_of

__all__ = ["CARD", "CardFacts", "Similarities", "escaped", "measured_similarities", "model_card", "save_card"]

CARD = "student.md"
"""Name of the model card in the folder of a run."""

SAMPLES = 512
"""Test samples for the similarity of teacher and student."""


@dataclass(frozen=True)
class Similarities:
    """CKA of pairs of layers (student, teacher) at two times; or why there is none."""

    pairs: Sequence[tuple[str, str]] = ()
    first: Sequence[float] = ()
    last: Sequence[float] = ()
    times: tuple[str, str] = ("before training", "after (best weights)")
    reason: str = ""


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells."""

    title: str
    about: str
    """One paragraph."""
    code: str
    """Python that loads the student."""
    result: DistillationResult
    similarities: Similarities | None
    """None without a teacher, or if nothing was measured."""
    settings: tuple[str, str]
    """Language and text: the recipe as TOML, or the settings as JSON."""
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None = None


def model_card(facts: CardFacts) -> str:
    """The model card as Markdown; texts in it must be `escaped`."""
    language, settings = facts.settings
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
    parts = [
        f"# {facts.title}",
        facts.about,
        "## Load it",
        f"```python\n{facts.code}\n```",
        "## Scores",
        _scores(facts),
    ]
    if facts.similarities is not None:
        parts += ["## Similarity of teacher and student", _similarity_table(facts.similarities)]
    # Where a run was stopped and resumed does not change its student.
    notes = [note for note in facts.result.notes if not note.startswith("resumed after")]
    if notes:
        parts += ["## Notes", "\n".join(f"- {escaped(note)}" for note in notes)]
    parts += ["## Made with", ", ".join(f"{name} {number}" for name, number in facts.versions.items()) + "."]
    if facts.git is not None:
        parts.append(f"Git commit {facts.git['commit']}{', with changes' if facts.git['changed'] else ''}.")
    parts += ["## Settings", f"{ticks}{language}\n{settings.rstrip()}\n{ticks}"]
    return "\n\n".join(parts) + "\n"


def save_card(
    result: DistillationResult, teachers: Sequence[nn.Module], student: nn.Module, train: Any, test: Any
) -> None:
    """Write the model card of a run of `distill`, in the main process and if it has a folder.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    folder = result.output_dir
    if folder is None or os.environ.get("RANK", "0") != "0" or not (folder / "best.safetensors").is_file():
        return
    taught = " and ".join(f"{_described(teacher)}" for teacher in teachers)
    samples = [f"{samples_of(data) or 'an unknown number of'} {part} samples" for data, part in
               ((train, "training"), (test, "test")) if data is not None]  # fmt: skip
    about = (
        f"A {_described(student)}. It learned from {f'the teacher {taught}' if taught else 'the targets alone'}. Data: "
        f"{escaped(type(getattr(train, 'dataset', train)).__name__)}, {', '.join(samples)}."
    )
    code = (
        "from cka_probe.distill import load_student\n\n"
        f"# `network` is made as for the run: {type(student).__name__}(...)\n"
        f"student = load_student({folder.as_posix()!r}, model=network)"
    )
    settings = (folder / "settings.json").read_text(encoding="utf-8")
    facts = CardFacts(
        title=escaped(type(student).__name__),
        about=about,
        code=code,
        result=result,
        similarities=_from_diagnostics(result),
        settings=("json", settings),
        versions=versions(),
    )
    atomic_write(folder / CARD, model_card(facts))


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
    pairs = list(zip(*layers, strict=True))
    found: list[list[float]] = []
    try:
        for student in (before, after):
            loader = data if isinstance(data, DataLoader) else DataLoader(data, max(batch_size, 64))
            result = compare(
                teacher,
                student,
                _first_inputs(loader),
                layers=[own for _, own in pairs] or "",
                layers_y=[own for own, _ in pairs] or "",
                progress=False,
            )
            rows, columns = list(result.rows), list(result.columns)
            places = [(rows.index(y), columns.index(x)) for x, y in pairs] or [(0, 0)]
            found.append([float(result.values[place]) for place in places])
    except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        # A card without this table is better than a finished run without a card.
        return Similarities(reason=str(error))
    return Similarities(pairs or [("outputs", "outputs")], found[0], found[1])


def escaped(text: str) -> str:
    """Text that cannot become Markdown or HTML."""
    return "".join(f"\\{c}" if c in "\\`*[]<>|#&" else c for c in printable(str(text)))


def _first_inputs(loader: DataLoader[Any]) -> Any:
    seen = 0
    for batch in loader:
        inputs, _ = split_batch(batch, labelled=False)
        # `compare` would read a list as (input, target); a tuple goes to networks of several inputs.
        yield inputs if isinstance(inputs, (Tensor, dict)) else (*inputs,)
        seen += samples_in(inputs)
        if seen >= SAMPLES:
            return


def _described(network: nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{escaped(type(network).__name__)} of {parameters:,} parameters"


def _from_diagnostics(result: DistillationResult) -> Similarities | None:
    """CKA of the first and of the last measurement; None without diagnostics."""
    table = result.diagnostics
    if table.empty:
        return None
    table = table[table["quantity"] == "cka"]
    epochs = table["epoch"].min(), table["epoch"].max()
    first, last = (table[table["epoch"] == epoch] for epoch in epochs)
    pairs = [(str(y), str(x)) for x, y in zip(last["first"], last["second"], strict=True)]
    times = (f"epoch {epochs[0]}", f"epoch {epochs[1]}")
    return Similarities(pairs, first["value"].tolist(), last["value"].tolist(), times)


def _scores(facts: CardFacts) -> str:
    result = facts.result
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
    name = escaped(result.score_column.replace("_", " "))
    return "\n".join([f"| network | {name} |", "|---|---:|", *lines, "", after])


def _similarity_table(similarities: Similarities) -> str:
    if similarities.reason:
        return f"Not measured: {escaped(similarities.reason)}"
    rows = [
        f"| {escaped(x)} | {escaped(y)} | {first:.3f} | {last:.3f} |"
        for (x, y), first, last in zip(similarities.pairs, similarities.first, similarities.last, strict=True)
    ]
    heading = [f"| student | teacher | {' | '.join(similarities.times)} |", "|---|---|---:|---:|"]
    about = "CKA on the first test samples (512 if there are so many); 1 is the same."
    return "\n".join([*heading, *rows, "", about])
