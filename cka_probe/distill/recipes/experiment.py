"""Run a recipe: build networks, data and loss, train the student, write the results."""

from __future__ import annotations

import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...atomic_write import atomic_write
from ...capture.layers import unknown_layer
from ...capture.state import random_states_restored
from ...identity import differences
from ..models.saved_student import DESCRIPTION, describe_student, is_code
from ..models.sources import load_model, load_network
from ..training.classification import distill
from ..training.diagnostics import Diagnostics
from ..training.environment import environment
from ..training.evaluation import Evaluation
from ..training.model_card import CARD, CardFacts, escaped, measured_similarities, model_card
from ..training.result import DistillationResult
from ..training.run_identity import samples_of
from ..training.schedules import CosineDecay, PerStep, StepDecay
from .loading import class_names, data_sources, file_digest, folder_digest, load_datasets, normalisation_of
from .methods import build_loss, default_ce_weight, title_of
from .recipe import Recipe
from .sections import ScheduleSection

__all__ = [
    "check_recipe",
    "finished",
    "load_teacher",
    "run_directory",
    "run_recipe",
    "sources",
]


def run_recipe(recipe: Recipe, *, resume: bool = True, progress: bool = True) -> DistillationResult:
    """Run a recipe and return its result. A run that was stopped continues from its last checkpoint.

    The run's directory holds weights and history, ``recipe.toml`` as it was run, ``environment.json``,
    ``student.json`` (for `load_student`) and, at the end of the run, the model card ``student.md`` and ``result.json``.

    Parameters
    ----------
    recipe : Recipe
        The recipe; its method and seed are run.
    resume : bool
        Continue from a checkpoint if there is one. False starts again.
    progress : bool
        Show progress bars.

    Returns
    -------
    DistillationResult
        Its ``output_dir`` is ``run_directory(recipe)``.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        If data, weights or options are missing or wrong.
    ModuleNotFoundError
        If a library that training needs is not installed.
    OSError
        If a file cannot be written.
    """
    directory = run_directory(recipe)
    result_file = directory / "result.json"
    if resume:
        _check_same_recipe(recipe)
    train, test, classes = load_datasets(recipe.data)
    check_recipe(recipe, classes)
    alone = recipe.loss.name == "ce"
    teacher = None if alone else load_teacher(recipe, classes, progress)
    torch.manual_seed(recipe.train.seed)  # every method starts from the same student
    student = load_model(recipe.student.model, recipe.student.weights, num_classes=classes)
    loss = build_loss(recipe.loss.name, recipe.loss.options)
    weight = recipe.loss.ce_weight
    student_layers, teacher_layers = recipe.loss.pair_of_layers or (recipe.student.layers, recipe.teacher.layers)
    diagnostics = recipe.diagnostics
    if not resume:
        result_file.unlink(missing_ok=True)
    cache = recipe.output.directory / "teacher_outputs" if recipe.output.teacher_cache and not alone else None
    about = json.dumps({**environment(recipe.train.seed), "sources": sources(recipe)}, indent=1)
    result = distill(
        teacher,
        student,
        train,
        test,
        loss,
        student_layers=student_layers,
        teacher_layers=None if teacher_layers == "auto" else teacher_layers,
        ce_weight=default_ce_weight(recipe.loss.name) if weight is None else weight,
        accumulation_steps=recipe.train.accumulation_steps,
        accumulation=recipe.train.accumulation,
        workers=recipe.data.workers,
        seed=recipe.train.seed,
        output_dir=directory,
        resume=resume,
        checkpoint_steps=recipe.output.checkpoint_steps,
        log_with="tensorboard" if recipe.output.tensorboard else None,
        teacher_cache=cache,
        diagnostics=None if diagnostics is None or alone else Diagnostics(**diagnostics.model_dump()),
        progress=progress and f"{recipe.loss.name}, seed {recipe.train.seed}",
        files={
            "recipe.toml": recipe.to_toml(),
            "environment.json": about,
            DESCRIPTION: describe_student(recipe.student.model, classes, class_names(train), normalisation_of(train)),
        },
        **_training(recipe.train),
    )
    if os.environ.get("RANK", "0") == "0":
        atomic_write(directory / CARD, _card(recipe, result, teacher, (train, test), classes, json.loads(about)))
    facts = {
        "recipe": recipe.name,
        "method": recipe.loss.name,
        "seed": recipe.train.seed,
        "epochs": recipe.train.epochs,
        "best_accuracy": result.best_accuracy,
        "best_epoch": result.best_epoch,
        "last_accuracy": result.last_accuracy,
        "seconds": float(result.history["seconds"].sum()),
        "notes": list(result.notes),
        "sources": sources(recipe),
    }
    atomic_write(result_file, json.dumps(facts, indent=1))
    return result


def _card(
    recipe: Recipe,
    result: DistillationResult,
    teacher: nn.Module | None,
    data: tuple[Any, Any],
    classes: int,
    made_with: dict[str, Any],
) -> str:
    """The model card of a finished run."""
    train, test = data
    size, directory = recipe.train.batch_size, run_directory(recipe)
    with random_states_restored():
        torch.manual_seed(recipe.train.seed)
        before, after = (
            load_model(recipe.student.model, recipe.student.weights, num_classes=classes) for _ in range(2)
        )
    similarity = None
    if teacher is not None:
        settings = json.loads((directory / "settings.json").read_text())
        layers = settings["student_layers"], settings["teacher_layers"]
        device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
        after.load_state_dict(result.best_state)
        similarity = measured_similarities(teacher, before.to(device), after.to(device), layers, test, size)
    source = recipe.student.model
    code = ["from cka_probe.distill import load_student"]
    if is_code(source):
        code += ["from cka_probe.distill.models.sources import load_model"]
    model = f", model=load_model({source!r})" if is_code(source) else ""
    code += ["", f"student = load_student({directory.as_posix()!r}{model})"]
    names = class_names(train)
    told = f": {', '.join(map(escaped, names[:20]))}{' ...' if len(names) > 20 else ''}" if names else ""
    taught = (
        "It learned from the labels alone." if teacher is None else f"Its teacher is {escaped(recipe.teacher.model)}."
    )
    place = recipe.data.name if recipe.data.root is None else f"{recipe.data.name} ({recipe.data.root})"
    about = (
        f"{escaped(source)} with {classes} outputs{told}. {taught} Data: {escaped(place)}, {samples_of(train)} "
        f"training and {samples_of(test)} test samples. Seed {recipe.train.seed}. Give it inputs as the test data of "
        "the recipe makes them: the same size, the same normalisation."
    )
    return model_card(
        CardFacts(
            title=f"{escaped(source)}, trained by {title_of(recipe.loss.name)}",
            about=about,
            code="\n".join(code),
            result=result,
            similarities=similarity,
            settings=("toml", recipe.to_toml()),
            versions=made_with["versions"],
            git=made_with["git"],
        )
    )


def run_directory(recipe: Recipe) -> Path:
    """The directory of a recipe's run: ``output.directory``/name/method/seed_N."""
    return recipe.output.directory / recipe.name / recipe.loss.name / f"seed_{recipe.train.seed}"


def finished(recipe: Recipe) -> dict[str, Any] | None:
    """The content of ``result.json`` of a recipe's run; None if the run is not finished.

    Raises
    ------
    ValueError
        If the directory holds the run of another recipe.
    """
    file = run_directory(recipe) / "result.json"
    if not file.exists():
        return None
    _check_same_recipe(recipe)
    facts = json.loads(file.read_text())
    if facts.get("epochs") != recipe.train.epochs:
        return None  # the run may go on to more epochs
    if different := differences(facts.get("sources", {}), sources(recipe)):
        raise ValueError(
            f"{file.parent} holds a run with other files: {'; '.join(different)}. Use another output directory, or "
            "--fresh."
        )
    return facts


def _check_same_recipe(recipe: Recipe) -> None:
    """Raise ValueError if the run's directory holds the run of another recipe. The number of epochs may differ."""
    directory = run_directory(recipe)
    if not (directory / "recipe.toml").exists():
        return
    # Compare the parsed recipes, not the texts: a later version may write other defaults.
    before = Recipe.load(directory / "recipe.toml")
    same_length = before.model_copy(update={"train": before.train.model_copy(update={"epochs": recipe.train.epochs})})
    different = [
        section
        for section in ("teacher", "student", "data", "loss", "train")
        if getattr(same_length, section) != getattr(recipe, section)
    ]
    if different:
        raise ValueError(
            f"{directory} holds a run of another recipe: {', '.join(different)} "
            f"{'differs' if len(different) == 1 else 'differ'}. Use another output directory, or --fresh."
        )


def check_recipe(recipe: Recipe, classes: int) -> None:
    """Build the loss, the networks and the schedules of a recipe, so that a mistake in it shows before any training.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        If an option of the loss is wrong, there is no such network or layer, or a file of weights is missing.
    """
    for name in (recipe.loss.name, *recipe.methods):
        build_loss(name, recipe.with_method(name).loss.options)
    for section in filter(None, (recipe.train, recipe.teacher.train)):
        _training(section)
    if recipe.diagnostics is not None:
        Diagnostics(**recipe.diagnostics.model_dump())
    with random_states_restored():
        for name, network in (("teacher", recipe.teacher), ("student", recipe.student)):
            if network.weights is not None and not network.weights.is_file():
                raise FileNotFoundError(f"{name}.weights: there is no file {network.weights}.")
            if name == "student" or recipe.loss.name != "ce":
                modules = dict(load_model(network.model, num_classes=classes).named_modules())
                for key, layers in _named_layers(recipe, name).items():
                    for layer in layers:
                        if layer not in modules:
                            raise ValueError(f"{key}: {unknown_layer(layer, modules, network.model)}")


def _named_layers(recipe: Recipe, network: str) -> dict[str, list[str]]:
    """The layers that a recipe names for "student" or "teacher", by the key that names them."""
    found: dict[str, Any] = {f"{network}.layers": getattr(recipe, network).layers}
    sections = {"loss": recipe.loss, **{f"methods.{name}": method for name, method in recipe.methods.items()}}
    for section, method in sections.items():
        found[f"{section}.layers"] = method.layers
        found[f"{section}.{network}_layers"] = getattr(method, f"{network}_layers")
    return {key: layers for key, layers in found.items() if isinstance(layers, list)}


def sources(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that a recipe names: weights, networks, and the names and sizes of the files of the data."""
    found = {}
    for name, network in (("teacher", recipe.teacher), ("student", recipe.student)):
        if network.weights is not None:
            found[f"{name}.weights"] = file_digest(network.weights)
        path = Path(network.model.removeprefix("hf:").partition(":")[0])
        if path.suffix == ".py" and path.is_file():
            found[f"{name}.model"] = file_digest(path)
        elif network.model.startswith("hf:"):
            found[f"{name}.model"] = folder_digest(path)
    for name, data in (("data", recipe.data), ("teacher.data", recipe.teacher.data)):
        found |= {} if data is None else data_sources(name, data)
    return found


def load_teacher(recipe: Recipe, classes: int, progress: bool = True) -> nn.Module:
    """The teacher of a recipe: loaded from its weights, trained here, or random (with a warning).

    A teacher that is trained here is saved in the directory ``teacher`` beside the runs and is trained only once.

    Parameters
    ----------
    recipe : Recipe
        The recipe; its section ``teacher`` is used.
    classes : int
        Length of the logits.
    progress : bool
        Show a progress bar.

    Returns
    -------
    torch.nn.Module
        The teacher.

    Raises
    ------
    FileNotFoundError
        If the file of the weights does not exist.
    ValueError
        If there is no such network, or the weights do not fit it.
    """
    section = recipe.teacher
    torch.manual_seed(0)
    teacher, untrained, notes = load_network(section.model, section.weights, num_classes=classes)
    for note in notes:
        warnings.warn(f"The teacher {note}.", stacklevel=2)
    if section.train is not None:
        train, test, _ = load_datasets(section.data or recipe.data)
        directory = recipe.output.directory / recipe.name / "teacher"
        workers = (section.data or recipe.data).workers
        options = _training(section.train)
        distill(
            None,
            teacher,
            train,
            test,
            output_dir=directory,
            workers=workers,
            progress=progress and "teacher",
            **options,
        )
    elif untrained:
        warnings.warn(
            f"The teacher {section.model} has no weights, so the student imitates a random network. Set "
            "teacher.weights, or add a section [teacher.train].",
            stacklevel=2,
        )
    return teacher


def _training(section: ScheduleSection) -> dict[str, Any]:
    """The arguments of `distill` that a section ``train`` sets."""
    schedule: Any = CosineDecay(warmup=section.warmup)
    if section.schedule == "step":
        options: dict[str, Any] = {"warmup": section.warmup}
        if section.milestones is not None:
            options["milestones"] = tuple(section.milestones)
        if section.decay is not None:
            options["factor"] = section.decay
        schedule = StepDecay(**options)
    if section.per == "step":
        schedule = PerStep(schedule)
    momentum = 0.9 if section.momentum is None else section.momentum
    sgd = partial(torch.optim.SGD, momentum=momentum)
    return {
        "epochs": section.epochs,
        "batch_size": section.batch_size,
        "learning_rate": section.learning_rate,
        "schedule": schedule,
        "optimizer": sgd if section.optimizer == "sgd" else torch.optim.AdamW,
        "weight_decay": section.weight_decay,
        "clip_norm": section.clip_norm,
        "ema": section.ema,
        "evaluation": Evaluation(
            every=section.evaluate_every, patience=section.patience, columns=tuple(section.columns)
        ),
        "mixed_precision": section.mixed_precision,
        "channels_last": section.channels_last,
        "compile": section.compile,
    }
