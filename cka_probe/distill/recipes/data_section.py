"""The section `data` of a recipe: which data set, with which options. Importing this module loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...capture.nearest import nearest_hint

__all__ = ["DATA_SETS", "DataSection", "DataSet", "file_and_function"]

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class DataSet(NamedTuple):
    """A data set of recipes: the function of `cka_probe.distill.data`, what its root is, and its further options."""

    function: str
    root: str | None
    options: tuple[str, ...]
    root_needed: bool = True


_PARTS = ("augment", "train_per_class", "seed", "validation_per_class")
_IMAGES = ("size", "augment", "test", "mean", "deviation")

DATA_SETS = {
    "digits": DataSet("digits", None, ("train_per_class", "seed", "size")),
    "fashion_mnist": DataSet(
        "fashion_mnist", "the folder that holds FashionMNIST/raw", (*_PARTS, "size"), root_needed=False
    ),
    "glyphs": DataSet("glyphs", "the folder that make_glyphs has filled", _PARTS),
    "cifar10": DataSet("cifar10", "the folder that holds cifar-10-batches-py", ("augment",)),
    "cifar100": DataSet("cifar100", "the folder that holds cifar-100-python", ("augment",)),
    "tiny_imagenet": DataSet("tiny_imagenet", "the folder tiny-imagenet-200", ("augment",)),
    "imagenet": DataSet("imagenet", "the folder that holds train and val", ("augment",)),
    "folder": DataSet("image_folder", "the folder that holds train/CLASS and test/CLASS", _IMAGES),
    "saved": DataSet("saved_dataset", "the folder of DatasetDict.save_to_disk", (*_IMAGES, "image", "label")),
}
"""Data sets by the name that a recipe gives them; `FILE.py:FUNCTION` names one's own."""


class DataSection(BaseModel):
    """The data set and how to load it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: str
    root: Path | None = None
    workers: NotNegative = 0
    augment: bool | None = None
    train_per_class: Count | None = None
    validation_per_class: NotNegative | None = None
    size: Count | None = None
    seed: NotNegative | None = None
    test: str | None = None
    mean: list[float] | None = Field(default=None, min_length=3, max_length=3)
    deviation: list[Annotated[float, Field(gt=0)]] | None = Field(default=None, min_length=3, max_length=3)
    image: str | None = None
    label: str | None = None
    classes: Count | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in DATA_SETS or file_and_function(name) is not None:
            return name
        if name.endswith(".py"):
            raise ValueError(f"say which function loads the data: {name}:FUNCTION")
        raise ValueError(
            f'there is no data set {name!r}. {nearest_hint(name, DATA_SETS, most=1)} Your own data: "folder" with '
            '`root` (train/CLASS, test/CLASS), "saved" with `root` (a data set of Hugging Face on disk), or '
            '"FILE.py:FUNCTION"'
        )

    @model_validator(mode="after")
    def _options_of_the_set(self) -> Self:
        own = file_and_function(self.name) is not None
        if not own and DATA_SETS[self.name].root_needed and DATA_SETS[self.name].root and self.root is None:
            raise ValueError(f"{self.name} needs `root`, {DATA_SETS[self.name].root}")
        wanted = () if own else DATA_SETS[self.name].options
        every = {name for kind in DATA_SETS.values() for name in kind.options} | {"root", "classes", "options"}
        known = {"classes", "options"} if own else {*wanted, *(["root"] if DATA_SETS[self.name].root else [])}
        wrong = [
            key for key in type(self).model_fields if key in every - known and getattr(self, key) not in (None, {})
        ]
        if wrong and own:
            raise ValueError(
                f"{', '.join(wrong)} cannot be set for {self.name}; arguments of the function go into `options`, such "
                f"as options = {{ {wrong[0]} = ... }}"
            )
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be set for {self.name}")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the function that loads the data, without root."""
        if self.name not in DATA_SETS:
            return dict(self.options)
        found = {key: getattr(self, key) for key in DATA_SETS[self.name].options}
        return {key: value for key, value in found.items() if value is not None}


def file_and_function(name: str) -> tuple[str, str] | None:
    """The file and the function of "FILE.py:FUNCTION"; None for any other text.

    >>> file_and_function("my_data.py:load"), file_and_function("digits")
    (('my_data.py', 'load'), None)
    """
    file, _, function = name.rpartition(":")
    return (file, function) if file.endswith(".py") and function else None
