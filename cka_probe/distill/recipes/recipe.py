"""A distillation experiment as a TOML file: read, validated with messages that name the key, changed, saved."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...capture.nearest import nearest, nearest_hint
from .methods import METHODS, check_options

__all__ = ["Recipe"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Network(_Section):
    """A network, the file of its weights, and the layers that are tapped."""

    model: str
    weights: Path | None = None
    layers: list[str] | Literal["auto"] = "auto"


class Data(_Section):
    """The data set and how it is loaded."""

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


class Schedule(_Section):
    """What the learning rate does."""

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


class Train(Schedule):
    """How the student is trained."""

    accumulation_steps: Count = 1
    accumulation: Literal["exact", "mean"] = "exact"
    seed: int = 0


class Teacher(Network):
    """The teacher; with a section ``train`` it is trained from the labels first, on ``data`` if that differs."""

    train: Schedule | None = None
    data: Data | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.weights is not None and self.train is not None:
            raise ValueError("give `weights` or a section `train`, not both")
        if self.data is not None and self.train is None:
            raise ValueError("`data` is what the teacher is trained on, but there is no section `train`")
        return self


class Method(BaseModel):
    """The options of a method: those of its loss, and the weight of the cross-entropy with the labels."""

    model_config = ConfigDict(extra="allow", frozen=True)
    ce_weight: Annotated[float, Field(ge=0)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss."""
        return dict(self.model_extra or {})


class Loss(Method):
    """The method and its options."""

    name: str = "rcka"

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self.name, self.options)
        return self


class Look(_Section):
    """When the run is looked into."""

    every: Count = 10
    samples: Annotated[int, Field(ge=4)] = 512
    heatmap_every: Count | None = None
    heatmap_layers: str | list[str] | None = None


class Output(_Section):
    """Where results go, and what else is written."""

    directory: Path = Path("runs")
    checkpoint_steps: Count | None = None
    tensorboard: bool = False
    teacher_cache: bool = False


class Recipe(_Section):
    """A distillation experiment.

    Parameters
    ----------
    name : str
        Names the folder of its results; the file's name where it comes from a file.
    teacher : Teacher
        ``model``, ``weights`` and ``layers``, or ``train`` (and ``data``) to train it here.
    student : Network
        ``model``, ``weights`` to start from, ``layers``.
    data : Data
        ``name`` ("digits", "cifar100", "imagenet") and its options.
    loss : Loss
        ``name`` of the method, ``ce_weight``, and the options of its loss.
    methods : dict of str to Method
        Options of other methods, for tables.
    train, output, diagnostics
        Sections; diagnostics are off without one.
    paper : dict of str to float
        Published accuracies in percent by method, and of the "teacher".

    Examples
    --------
    >>> recipe = Recipe.model_validate(
    ...     {"teacher": {"model": "resnet20"}, "student": {"model": "resnet8"}, "data": {"name": "digits"}}
    ... )
    >>> recipe.train.epochs, recipe.loss.name
    (240, 'rcka')
    """

    name: str = "recipe"
    teacher: Teacher
    student: Network
    data: Data
    loss: Loss = Loss()
    methods: dict[str, Method] = {}
    train: Train = Train()
    output: Output = Output()
    diagnostics: Look | None = None
    paper: dict[str, float] = {}

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
        """The recipe of a TOML file.

        Parameters
        ----------
        path : path
            The file. Paths in it are relative to the working directory.
        changes : sequence of str
            "section.key=value", the value as TOML; what is no TOML is text.

        Returns
        -------
        Recipe
            Validated.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no TOML, or a key or value is wrong: the message names the key.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(_no_file(path))
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a TOML file: {error}.") from error
        content.setdefault("name", path.stem)
        for change in changes:
            _apply(content, change)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"{path}: {explain(error, content)}") from None

    def with_method(self, name: str, seed: int | None = None) -> Self:
        """The same experiment with another method and seed.

        Parameters
        ----------
        name : str
            A method; its options come from ``methods``, or from ``loss`` where that has the same name.
        seed : int, optional
            Of the student and the run.

        Returns
        -------
        Recipe
            A new one.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        loss = self.loss
        if name != self.loss.name:
            method = self.methods.get(name, Method())
            check_options(name, method.options)
            loss = Loss(name=name, ce_weight=method.ce_weight, **method.options)
        train = self.train if seed is None else self.train.model_copy(update={"seed": seed})
        return self.model_copy(update={"loss": loss, "train": train})

    def to_toml(self) -> str:
        """The recipe as TOML text that `load` reads, all defaults written out."""
        import tomli_w

        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def explain(error: ValidationError, content: Mapping[str, Any]) -> str:
    """What is wrong with a recipe, one sentence for each key, with the nearest key for an unknown one.

    Parameters
    ----------
    error : pydantic.ValidationError
        Of a `Recipe`.
    content : mapping
        What was validated.

    Returns
    -------
    str
        Sentences separated by spaces.
    """
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
    """The keys of a section, by its path; none where it has any."""
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
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
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
    beside = sorted(other.name for other in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = nearest(path.name, beside, 1)
    return f"There is no recipe {path}." + (f" Did you mean {path.with_name(near[0])}?" if near else "")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return value
