"""Recipes: read a distillation experiment from TOML, validate, change and save it. Messages name the wrong key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from ...capture.nearest import nearest, nearest_hint
from .data_section import DataSection
from .methods import METHODS, check_options, is_method, parts_of
from .sections import (
    DiagnosticsSection,
    LossSection,
    MethodSection,
    NetworkSection,
    OutputSection,
    Section,
    TeacherSection,
    TrainSection,
)

__all__ = ["Recipe"]

MOST_BYTES = 2**20
"""The largest file of a recipe."""

MOST_DOTS = 100
"""In a key, more than any recipe has: the time and memory of tomllib grow with the square of their number."""


class Recipe(Section):
    """A distillation experiment.

    Attributes
    ----------
    name : str
        Name of the folder of its results; by default the name of the file.
    teacher : TeacherSection
        ``model``, ``weights`` and ``layers``, or ``train`` (and ``data``) to train it first.
    student : NetworkSection
        ``model``, ``weights`` to start from, ``layers``.
    data : DataSection
        ``name`` ("digits", "fashion_mnist", "glyphs", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder",
        "saved" or "FILE.py:FUNCTION") and its options.
    loss : LossSection
        ``name`` of the method, or a list of names for their sum; ``ce_weight``, ``layers`` (or ``student_layers`` and
        ``teacher_layers``), and the options of its loss. A weight may be a ramp: ``{ to = 15, until = 0.5 }``.
    methods : dict of str to MethodSection
        Options of other methods, for tables.
    train : TrainSection
        Epochs, batch size, optimizer and schedule of the student.
    output : OutputSection
        Folder of the results, and what is written.
    diagnostics : DiagnosticsSection or None
        What is measured while the student trains; nothing without this section.
    paper : dict of str to float
        Published accuracies in percent, by method and for the "teacher".

    Examples
    --------
    >>> recipe = Recipe.model_validate(
    ...     {"teacher": {"model": "resnet20"}, "student": {"model": "resnet8"}, "data": {"name": "digits"}}
    ... )
    >>> recipe.train.epochs, recipe.loss.name
    (240, 'rcka')
    """

    name: str = "recipe"
    teacher: TeacherSection
    student: NetworkSection
    data: DataSection
    loss: LossSection = LossSection()
    methods: dict[str, MethodSection] = Field(default_factory=dict)
    train: TrainSection = TrainSection()
    output: OutputSection = OutputSection()
    diagnostics: DiagnosticsSection | None = None
    paper: dict[str, float] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str) -> str:
        if not name.strip() or name in (".", "..") or any(c in "/\\:" or not c.isprintable() for c in name):
            raise ValueError(f"it is the name of a folder of results, without / or control characters, got {name!r}")
        return name

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        for name, method in self.methods.items():
            check_options(name, method.options)
        for name in self.paper:
            if name != "teacher" and not is_method(name):
                raise ValueError(f"paper: {_unknown(name, [*METHODS, 'teacher'])}")
        return self

    @classmethod
    def load(cls, path: Path | str, changes: Sequence[str] = ()) -> Self:
        """Read a recipe from a TOML file.

        Parameters
        ----------
        path : path
            The file. Paths in it are relative to the working directory.
        changes : sequence of str
            "section.key=value". The value is read as TOML; if it is not TOML, it is text.

        Returns
        -------
        Recipe
            The validated recipe.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not TOML, or a key or value is wrong. The message names the key.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(_no_file(path))
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has {path.stat().st_size:,} bytes")
            text = path.read_text(encoding="utf-8")
            if any(part.count(".") > MOST_DOTS for part in re.split(r"[=,\[{\n]", text)):
                raise RecursionError
            content = tomllib.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not a TOML file: {error}.") from error
        except RecursionError:
            raise ValueError(f"{path} is not a recipe: its values are nested too deeply.") from None
        content.setdefault("name", path.stem)
        for change in changes:
            _apply(content, change)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"{path}: {_explain(error, content)}") from None

    def with_method(self, name: str, seed: int | None = None) -> Self:
        """The same experiment with another method and seed.

        Parameters
        ----------
        name : str
            The method. Its options come from ``loss`` if that has the same name, else from ``methods``.
        seed : int, optional
            Seed of the student and of the run. The seed of the recipe by default.

        Returns
        -------
        Recipe
            A new recipe.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        loss = self.loss if name == self.loss.name else self._loss(name)
        train = self.train if seed is None else self.train.model_copy(update={"seed": seed})
        return self.model_copy(update={"loss": loss, "train": train})

    def _loss(self, name: str) -> LossSection:
        """The section ``loss`` of another method. A part of a sum without options has those that it has alone."""
        method = self.methods.get(name, MethodSection())
        parts = parts_of(name)
        check_options(name, method.options)
        options = method.options
        if len(parts) > 1:
            options = {part: options.get(part, self.with_method(part).loss.options) for part in parts}
        given = method.model_dump(include={"ce_weight", "layers", "student_layers", "teacher_layers"})
        return LossSection(name=name, **given, **options)

    def to_toml(self) -> str:
        """The recipe as TOML text that `load` can read; it contains all defaults."""
        import tomli_w

        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _explain(error: ValidationError, content: Mapping[str, Any]) -> str:
    """One sentence for each wrong key of a recipe; for an unknown key it names the nearest one."""
    sentences = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            section = Recipe.model_fields if len(path) == 1 else _fields(path[:-1])
            sentences.append(f"unknown key {key!r}. {nearest_hint(path[-1], list(section))}")
        elif problem["type"] == "missing":
            sentences.append(f"{key!r} is missing.")
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"]).rstrip(".")
            text += "" if text.endswith("?") else "."
            sentences.append(f"{key}: {text}" if key else text)
        else:
            value: Any = content
            for part in problem["loc"]:
                value = value.get(part) if isinstance(value, Mapping) else problem["input"]
            message = problem["msg"][0].lower() + problem["msg"][1:]
            sentences.append(f"{key!r}: {message}, got {problem['input']!r}.")
    return " ".join(dict.fromkeys(sentences))


def _fields(path: Sequence[str]) -> Mapping[str, Any]:
    """The fields of the section at a path; empty if the section accepts any key."""
    section: Any = Recipe
    for part in path:
        field = section.model_fields.get(part)
        if field is None:
            return {}
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return {}
    return section.model_fields


def _apply(content: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"A change is written section.key=value, got {change!r}.")
    if not change.isprintable():
        raise ValueError(f"A change is one line without control characters, got {change!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except RecursionError:
        raise ValueError(f"The change {change[:60]!r}... is nested too deeply.") from None
    *sections, last = key.strip().split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ValueError(f"{change!r}: {section!r} is not a section.")
    place[last] = value


def _unknown(name: str, known: Sequence[str]) -> str:
    return f"there is no {name!r}. {nearest_hint(name, known, most=1)}"


def _no_file(path: Path) -> str:
    beside = sorted(other.stem for other in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = nearest(path.stem, beside, 1)
    return f"There is no recipe {path}." + (f" Did you mean {path.with_name(near[0] + '.toml')}?" if near else "")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return value
