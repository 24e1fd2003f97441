"""The section `data`: every data set of the package and one's own, checked against the functions that load it."""

import inspect
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cka_probe.distill import data as datasets
from cka_probe.distill.recipes.data_section import DATA_SETS, DataSection
from cka_probe.distill.recipes.experiment import finished, run_directory, run_recipe, sources
from cka_probe.distill.recipes.loading import load_datasets
from cka_probe.distill.recipes.recipe import Recipe

NETWORKS = {"teacher": {"model": "resnet8", "train": {"epochs": 1}}, "student": {"model": "resnet8"}}

MODULE = """
import torch
from torch.utils.data import TensorDataset

def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 3)

def load(count=40):
    return images(count), images(20, seed=1)

def three(count=40):
    return images(count), images(20, seed=1), 5

def unknown():
    return list(images(8)), list(images(8))

def wrong():
    return images(8)

def broken():
    return 1 / 0
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_data", None)


@pytest.fixture
def pictures(folder):
    """Two classes of pictures, which colour tells apart, of several sizes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for name, shift in (("cats", 0), ("dogs", 120)):
            place = folder / "pets" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(shift, shift + 100, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder / "pets"


def recipe(tmp_path, **data):
    loss = {"name": "rcka", "inter_weight": 0}  # similarities between classes need three of them
    train = {"epochs": 1, "batch_size": 8}
    return Recipe.model_validate(
        {**NETWORKS, "data": data, "loss": loss, "train": train, "output": {"directory": str(tmp_path / "runs")}}
    )


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_options_of_a_data_set_are_arguments_of_its_function(name):
    known = inspect.signature(getattr(datasets, DATA_SETS[name].function)).parameters
    assert set(DATA_SETS[name].options) <= set(known)
    first = next(iter(known.values()))
    if DATA_SETS[name].root is None:
        assert first.name not in ("root", "folder")
    else:
        assert first.name in ("root", "folder")
        assert (first.default is inspect.Parameter.empty) == DATA_SETS[name].root_needed


def test_a_folder_of_pictures_runs_and_its_files_belong_to_the_run(pictures, tmp_path):
    chosen = recipe(tmp_path, name="folder", root="pets", size=16, augment=False)
    train, test, classes = load_datasets(chosen.data)
    assert (len(train), len(test), classes, train.classes) == (24, 12, 2, ["cats", "dogs"])
    assert train[0][0].shape == (3, 16, 16)
    run_recipe(chosen, progress=False)
    assert finished(chosen) is not None
    again = tmp_path / "again.toml"
    again.write_text(chosen.to_toml())
    assert Recipe.load(again).data == chosen.data
    Image.new("RGB", (9, 9)).save(pictures / "train" / "cats" / "new.png")
    with pytest.raises(ValueError, match=r"holds a run with other files: data.root was .* and is now"):
        finished(chosen)


def test_a_function_of_ones_own_file_gets_its_options(tmp_path):
    train, test, classes = load_datasets(DataSection(name="my_data.py:load", options={"count": 24}))
    assert (len(train), len(test), classes) == (24, 20, 3)  # from the labels 0, 1, 2
    assert load_datasets(DataSection(name="my_data.py:three"))[2] == 5
    assert load_datasets(DataSection(name="my_data.py:unknown", classes=3))[2] == 3
    chosen = recipe(tmp_path, name="my_data.py:load", options={"count": 24})
    assert run_recipe(chosen, progress=False).history["test_accuracy"].between(0, 1).all()
    before = sources(chosen)
    assert list(before) == ["data.name"]
    (tmp_path / "my_data.py").write_text(MODULE.replace("seed=1", "seed=2"))
    assert sources(chosen) != before
    with pytest.raises(ValueError, match=r"holds a run with other files: data.name was"):
        finished(chosen)
    assert run_directory(chosen).is_dir()


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"name": "my_data.py:lod"}, ValueError, r"my_data.py has no function 'lod'. Did you mean 'load'"),
        ({"name": "my_data.py:wrong"}, TypeError, r"returned TensorDataset. Return \(train, test\)"),
        ({"name": "my_data.py:broken"}, ValueError, r"line 22, in broken: ZeroDivisionError"),
        ({"name": "my_data.py:unknown"}, ValueError, r"how many classes has my_data.py:unknown\? Set data.classes"),
        ({"name": "my_data.py:load", "options": {"cuont": 3}}, ValueError, r"data.options: .*'cuont'"),
        ({"name": "no_file.py:load"}, FileNotFoundError, r"There is no file no_file.py"),
        ({"name": "folder", "root": "nowhere"}, FileNotFoundError, r"nowhere/train' does not exist"),
    ],
)
def test_what_is_wrong_with_ones_own_data_is_said(section, error, message):
    with pytest.raises(error, match=message):
        load_datasets(DataSection(**section))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "cifra10"}, r"there is no data set 'cifra10'. Did you mean 'cifar10'\?"),
        ({"name": "coco"}, r'Your own data: "folder" with `root`'),
        ({"name": "my_data.py"}, r"say which function loads the data: my_data.py:FUNCTION"),
        ({"name": "folder"}, r"folder needs `root`, the folder that holds train/CLASS and test/CLASS"),
        ({"name": "cifar10", "root": "data", "size": 32}, r"size cannot be set for cifar10"),
        (
            {"name": "my_data.py:load", "size": 32},
            r"arguments of the function go into `options`, such as options = \{ size",
        ),
        ({"name": "digits", "classes": 10}, r"classes cannot be set for digits"),
        ({"name": "folder", "root": "pets", "mean": [0.5]}, r"at least 3 items"),
    ],
)
def test_a_section_that_cannot_be_is_refused(section, message):
    with pytest.raises(ValueError, match=message):
        DataSection(**section)


def test_false_is_an_option_too():
    assert DataSection(name="folder", root="pets", augment=False).arguments == {"augment": False}
    with pytest.raises(ValueError, match="augment cannot be set for digits"):
        DataSection(name="digits", augment=False)
    assert torch.is_tensor(load_datasets(DataSection(name="digits", size=8))[0][0][0])
