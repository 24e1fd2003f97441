"""Sections of a recipe, each with its checks; the section `data` has a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .data_section import DataSection
from .methods import check_options

__all__ = [
    "DiagnosticsSection",
    "LossSection",
    "MethodSection",
    "NetworkSection",
    "OutputSection",
    "ScheduleSection",
    "Section",
    "TeacherSection",
    "TrainSection",
]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NetworkSection(Section):
    """A network, the file of its weights, and the layers that are tapped."""

    model: str
    weights: Path | None = None
    layers: list[str] | Literal["auto"] = "auto"


class ScheduleSection(Section):
    """Epochs, optimizer and learning rate."""

    epochs: Count = 240
    batch_size: Annotated[int, Field(ge=4)] = 64
    learning_rate: Positive = 0.05
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[Positive] | None = None
    decay: Positive | None = None
    warmup: Annotated[int | float, Field(ge=0)] = 0
    per: Literal["epoch", "step"] = "epoch"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    clip_norm: Positive | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    evaluate_every: Count | None = None
    patience: Count | None = None
    columns: list[str] = Field(default_factory=list)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False

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
    """The options of a method: those of its loss, the weight of the cross-entropy, and the layers that it compares."""

    model_config = ConfigDict(extra="allow", frozen=True)
    ce_weight: Annotated[float, Field(ge=0)] | None = None
    layers: list[str] | Literal["auto"] | None = None
    student_layers: list[str] | None = None
    teacher_layers: list[str] | None = None

    @model_validator(mode="after")
    def _one_list_for_each_network(self) -> Self:
        if self.layers is not None and (self.student_layers is not None or self.teacher_layers is not None):
            raise ValueError("`layers` are those of both networks; give `student_layers` and `teacher_layers` instead")
        if (self.student_layers is None) != (self.teacher_layers is None):
            raise ValueError("give both `student_layers` and `teacher_layers`, or `layers` if the names are the same")
        numbers = [len(layers or ()) for layers in (self.student_layers, self.teacher_layers)]
        if numbers[0] != numbers[1]:
            raise ValueError(
                f"`student_layers` and `teacher_layers` are compared pair by pair, got {numbers[0]} and {numbers[1]} "
                "layers"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss; of a sum, those of each part under its name."""
        return dict(self.model_extra or {})

    @property
    def pair_of_layers(self) -> tuple[list[str] | Literal["auto"], list[str] | Literal["auto"]] | None:
        """Layers of the student and of the teacher; None if the method names none."""
        if self.student_layers is not None and self.teacher_layers is not None:
            return self.student_layers, self.teacher_layers
        return None if self.layers is None else (self.layers, self.layers)


class LossSection(MethodSection):
    """The method and its options. A list of names, or "rcka+kd", is the sum of the methods."""

    name: str = "rcka"

    @field_validator("name", mode="before")
    @classmethod
    def _a_sum(cls, name: Any) -> Any:
        return "+".join(name) if isinstance(name, list) and all(isinstance(one, str) for one in name) else name

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self.name, self.options)
        return self


class DiagnosticsSection(Section):
    """How often the run is diagnosed."""

    every: Count = 10
    samples: Annotated[int, Field(ge=4)] = 512
    heatmap_every: Count | None = None
    heatmap_layers: str | list[str] | None = None


class OutputSection(Section):
    """The directory of the results, and which further files are written."""

    directory: Path = Path("runs")
    checkpoint_steps: Count | None = None
    tensorboard: bool = False
    teacher_cache: bool = False
