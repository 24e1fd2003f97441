"""Recipes: read a distillation experiment from TOML, validate, change and save it. Messages name the wrong key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...capture.nearest import nearest, nearest_hint
from .methods import METHODS, check_options

__all__ = ["DataSection", "Recipe", "ScheduleSection"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NetworkSection(_Section):
    """A network, the file of its weights, and the layers that are tapped."""

    model: str
    weights: Path | None = None
    layers: list[str] | Literal["auto"] = "auto"


class DataSection(_Section):
    """The data set and how to load it."""

    name: Literal["digits", "cifar100", "imagenet"]
    root: Path | None = None
    workers: Annotated[int, Field(ge=0)] = 0
    augment: bool | None = None
    train_per_class: Count | None = None
    size: Count | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _options_of_the_set(self) -> Self:
        if self.name == "digits":
            wrong = [key for key in ("root", "augment") if getattr(self, key) is not None]
        else:
            wrong = [key for key in ("train_per_class", "size", "seed") if getattr(self, key) is not None]
            if self.root is None:
                raise ValueError(f"{self.name} needs `root`, the folder that holds it")
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be set for {self.name}")
        return self


class ScheduleSection(_Section):
    """Epochs, optimizer and learning rate."""

    epochs: Count = 240
    batch_size: Annotated[int, Field(ge=4)] = 64
    learning_rate: Positive = 0.05
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[Positive] | None = None
    decay: Positive | None = None
    warmup: Annotated[int, Field(ge=0)] = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.schedule == "cosine" and not (self.milestones is None and self.decay is None):
            raise ValueError('`milestones` and `decay` belong to schedule = "step"')
        if self.optimizer == "adamw" and self.momentum is not None:
            raise ValueError('`momentum` belongs to optimizer = "sgd"')
        return self


class TrainSection(ScheduleSection):
    """The training of the student."""

    accumulation_steps: Count = 1
    accumulation: Literal["exact", "mean"] = "exact"
    seed: int = 0


class TeacherSection(NetworkSection):
    """The teacher. With a section ``train`` it is first trained on the labels of ``data``, by default the student's."""

    train: ScheduleSection | None = None
    data: DataSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.weights is not None and self.train is not None:
            raise ValueError("give `weights` or a section `train`, not both")
        if self.data is not None and self.train is None:
            raise ValueError("`data` is the training data of the teacher, but there is no section `train`")
        return self


class MethodSection(BaseModel):
    """The options of a method: those of its loss, and the weight of the cross-entropy."""

    model_config = ConfigDict(extra="allow", frozen=True)
    ce_weight: Annotated[float, Field(ge=0)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        return dict(self.model_extra or {})


class LossSection(MethodSection):
    """The method and its options."""

    name: str = "rcka"

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self.name, self.options)
        return self


class DiagnosticsSection(_Section):
    """How often the run is diagnosed."""

    every: Count = 10
    samples: Annotated[int, Field(ge=4)] = 512
    heatmap_every: Count | None = None
    heatmap_layers: str | list[str] | None = None


class OutputSection(_Section):
    """The directory of the results, and which further files are written."""

    directory: Path = Path("runs")
    checkpoint_steps: Count | None = None
    tensorboard: bool = False
    teacher_cache: bool = False


class Recipe(_Section):
    """A distillation experiment.

    Parameters
    ----------
    name : str
        Name of the folder of its results; by default the name of the file.
    teacher : TeacherSection
        ``model``, ``weights`` and ``layers``, or ``train`` (and ``data``) to train it first.
    student : NetworkSection
        ``model``, ``weights`` to start from, ``layers``.
    data : DataSection
        ``name`` ("digits", "cifar100", "imagenet") and its options.
    loss : LossSection
        ``name`` of the method, ``ce_weight`` and the options of its loss.
    methods : dict of str to MethodSection
        Options of other methods, for tables.
    train, output, diagnostics
        Further sections. Without a section ``diagnostics`` there are no diagnostics.
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
    methods: dict[str, MethodSection] = {}
    train: TrainSection = TrainSection()
    output: OutputSection = OutputSection()
    diagnostics: DiagnosticsSection | None = None
    paper: dict[str, float] = {}

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
            if name not in (*METHODS, "teacher"):
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
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
        loss = self.loss
        if name != self.loss.name:
            method = self.methods.get(name, MethodSection())
            check_options(name, method.options)
            loss = LossSection(name=name, ce_weight=method.ce_weight, **method.options)
        train = self.train if seed is None else self.train.model_copy(update={"seed": seed})
        return self.model_copy(update={"loss": loss, "train": train})

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
            sentences.append(f"{key}: {text}." if key else f"{text}.")
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
