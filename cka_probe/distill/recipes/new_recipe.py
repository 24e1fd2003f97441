"""Write a commented recipe from the names of two networks and of the data."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...atomic_write import atomic_write
from ...capture.state import borrowed, random_states_restored
from ..models.saved_student import is_code
from ..models.sources import load_network
from ..taps.stages import match_stages
from ..training.batch_parts import split_batch
from ..training.run_identity import samples_of
from .data_section import DATA_SETS, DataSection, file_and_function
from .loading import load_datasets
from .recipe import Recipe

__all__ = ["data_of", "new_recipe", "write_recipe"]

# Files and folders by which the root of a data set is known.
MARKS = {
    "cifar100": "cifar-100-python",
    "cifar10": "cifar-10-batches-py",
    "fashion_mnist": "FashionMNIST",
    "tiny_imagenet": "wnids.txt",
    "saved": "dataset_dict.json",
    "glyphs": "train.npz",
    "folder": "train",
}

LARGE = 20_000
"""From this many training samples on, a run of few epochs has enough steps."""


def data_of(text: str, size: int | None = None) -> DataSection:
    """The section ``data`` for what a user calls their data: a name, a folder, NAME:FOLDER, or FILE.py:FUNCTION.

    Parameters
    ----------
    text : str
        "digits", "fashion_mnist", the folder of a known data set or of one's own (train/CLASS, test/CLASS), a name and
        a folder ("imagenet:/data/imagenet"), or a Python file and a function.
    size : int, optional
        Height and width of the images, where the data set has that option.

    Returns
    -------
    DataSection
        The section.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the folder holds no known data set, or the data set has no size.

    Examples
    --------
    >>> data_of("digits").name
    'digits'
    """
    options: dict[str, Any] = {} if size is None else {"size": size}
    name, colon, root = text.partition(":")
    try:
        if file_and_function(text) is not None or text in DATA_SETS:
            return DataSection(name=text, **options)
        if colon and name in DATA_SETS:
            return DataSection(name=name, root=Path(root), **options)
        folder = Path(text)
        if not folder.is_dir():
            # The message of an unknown name lists the known ones.
            return DataSection(name=text, **options)
        found = next((name for name, mark in MARKS.items() if (folder / mark).exists()), None)
        if found is None:
            raise ValueError(
                f"{text} holds no data set that is known here. Your own images are expected at "
                f"{text}/train/CLASS/*.jpg and {text}/test/CLASS/*.jpg."
            )
        return DataSection(name=found, root=folder, **options)
    except ValueError as error:
        raise ValueError(f"--data {text}: {_sentence(error)}") from None


def new_recipe(
    teacher: str, student: str, data: DataSection, *, teacher_weights: str | Path | None = None, name: str = "recipe"
) -> str:
    """A commented recipe that distills one network into another with RCKA, as TOML.

    The networks are built and run on two samples, so that the recipe names their layers and fits the data.

    Parameters
    ----------
    teacher, student : str
        Networks, as `load_model` takes them.
    data : DataSection
        The data, see `data_of`.
    teacher_weights : path, optional
        File of the teacher's weights. Without it, a teacher with random weights is first trained on the labels.
    name : str
        The name of the recipe's file, for the comment at its top.

    Returns
    -------
    str
        The recipe.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError, ModuleNotFoundError
        If a network or the data cannot be loaded, or they do not fit together.
    """
    zoo = all(":" not in source or is_code(source) for source in (teacher, student))
    last: Exception = ValueError("no size fits")
    for size in _sizes(data, zoo):
        section = data if size is None else data.model_copy(update={"size": size})
        train, _, classes = load_datasets(section)
        with random_states_restored():
            master = load_network(teacher, teacher_weights, num_classes=classes)
            pupil = load_network(student, num_classes=classes).model
        sample = _sample(train)
        try:
            for role, source, network in (("teacher", teacher, master.model), ("student", student, pupil)):
                _check_outputs(role, source, network, sample, classes)
            student_layers, teacher_layers = match_stages(pupil, master.model, sample)
        except (ValueError, RuntimeError, TypeError) as error:
            last = error
            continue
        break
    else:
        raise ValueError(f"{teacher} and {student} cannot be distilled on {data.name}: {last}") from last
    content = {
        "teacher": _teacher(teacher, teacher_weights, teacher_layers, master.untrained, _training(master.model, train)),
        "student": f"[student]\nmodel = {_toml(student)}\nlayers = {_toml(student_layers)}\n",
        "data": _data(section),
        "train": f"[train]\n{_training(pupil, train)}",
        "inter": "inter_weight = { to = 15, until = 0.5 }  # similarities between the classes"
        if classes > 2
        else "inter_weight = 0  # similarities between the classes, which need at least 3 classes",
    }
    return TEMPLATE.format(
        title=f"{_comment(teacher)} -> {_comment(student)} on {_comment(data.name)}: {samples_of(train)} training "
        f"samples, {classes} classes.",
        file=_comment(name),
        **content,
    )


def write_recipe(path: Path, text: str) -> Recipe:
    """Check a recipe and write it; an existing file is not replaced.

    Raises
    ------
    FileExistsError
        If the file exists.
    ValueError
        If the recipe is not valid.
    OSError
        If it cannot be written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists. Choose another name with -o, or remove it.")
    recipe = Recipe.model_validate({"name": path.stem, **tomllib.loads(text)})
    atomic_write(path, text)
    return recipe


TEMPLATE = """# {title}
#
#   cka-probe distill {file}
#   cka-probe distill-table {file} --methods ce,kd,rcka --seeds 3
#
# Paths are relative to the working directory. `--set train.epochs=5` changes a value for one run.

{teacher}
{student}
{data}
# RCKA: the student's layers and outputs are to see the samples as the teacher's do. Other methods: kd, dkd, dist, ...
# A sum of two: name = ["rcka", "kd"].
[loss]
name = "rcka"
feature_weight = 1  # layers, pair by pair
# Weights that rise over the first half of the run: cross-entropy decides first. Constant ones should be small (1).
intra_weight = {{ to = 15, until = 0.5 }}  # similarities between the samples of a batch, in the outputs
{inter}

{train}
[output]
directory = "runs"
# checkpoint_steps = 500  # also within an epoch; a stopped run goes on when it is called again

# How similar the layers are during training (in diagnostics.csv):
# [diagnostics]
# every = 5
"""


def _teacher(source: str, weights: str | Path | None, layers: list[str], untrained: bool, training: str) -> str:
    lines = ["[teacher]", f"model = {_toml(source)}", f"layers = {_toml(layers)}"]
    if weights is not None:
        return "\n".join([*lines, f"weights = {_toml(str(weights))}", ""])
    if not untrained:
        return "\n".join([*lines, ""])
    about = (
        "# It has no weights yet, so it is first trained on the labels (once, for all methods and seeds). If you have "
        'some:\n# weights = "teacher.safetensors"  (and remove the section [teacher.train])'
    )
    return "\n".join([*lines, about, "", f"[teacher.train]\n{training}"])


def _training(model: nn.Module, train: Any) -> str:
    """Lines of a section ``train``: for networks without batch norm those of transformers."""
    samples = samples_of(train) or LARGE
    convolutional = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    # At least some ten steps an epoch, and several thousand samples of small sets in all.
    batch = max(4, min(64, 1 << max(2, (samples // 10).bit_length() - 1)))
    lines = [
        f"epochs = {30 if samples >= LARGE else 60}",
        f"batch_size = {batch}",
        f"learning_rate = {0.05 if convolutional else 5e-4}",
        'schedule = "cosine"  # "step" with milestones can be extended to more epochs later',
    ]
    if not convolutional:
        lines += ['optimizer = "adamw"', "weight_decay = 0.05", "warmup = 3"]
    return "\n".join([*lines, ""])


def _data(section: DataSection) -> str:
    told = section.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in told.items() if not isinstance(value, dict)]
    if section.root is not None and section.name not in ("digits", "glyphs"):
        lines.append("workers = 2  # processes that read images; 0 reads them in the main one")
        lines.append("# augment = false  # no random crops and flips of the training images")
    return "\n".join(["[data]", *lines, ""])


def _sizes(data: DataSection, zoo: bool) -> Iterator[int | None]:
    """Sizes of the images to try, the likeliest first; None if the data set has one size."""
    kind = DATA_SETS.get(data.name)
    if data.size is not None or kind is None or "size" not in kind.options:
        yield None
    elif data.name in ("folder", "saved"):
        yield from (32, 224) if zoo else (224,)
    else:
        yield from ((16, 32, 224) if zoo else (32, 224)) if data.name == "digits" else (None, 32, 224)


def _sample(data: Any) -> Any:
    """Inputs of two training samples."""
    with random_states_restored():
        loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=2)
        return split_batch(next(iter(loader)))[0]


def _check_outputs(role: str, source: str, model: nn.Module, inputs: Any, classes: int) -> None:
    with torch.no_grad(), borrowed([model]):
        model.eval()
        made = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    logits = getattr(made, "logits", made)
    if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] < classes:
        raise ValueError(f"the {role} {source} has {logits.shape[1]} outputs, but the data have {classes} classes")


def _toml(value: Any) -> str:
    """A value as TOML: JSON's texts, numbers, lists and true/false are TOML too."""
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    return re.sub(r"[^ -~\u00a0-\uffff]", "?", text)


def _sentence(error: ValueError) -> str:
    """The message of pydantic's or of an own error."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    return " ".join(
        str(problem.get("ctx", {}).get("error", problem["msg"])).rstrip(".") + "." for problem in problems()
    )
