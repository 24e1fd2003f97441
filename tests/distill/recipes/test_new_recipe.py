"""`recipe new`: what it writes is valid and runs as it is, for the networks and data that people have."""

import shutil
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from cka_probe.cli import main
from cka_probe.distill import load_student
from cka_probe.distill.models import build
from cka_probe.distill.recipes.experiment import check_recipe, run_directory, run_recipe
from cka_probe.distill.recipes.new_recipe import data_of, new_recipe
from cka_probe.distill.recipes.recipe import Recipe
from cka_probe.distill.training.checkpoints import save_weights


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, name in enumerate(("cats", "dogs", "a cow's")):
            place = tmp_path / "pets" / part / name
            place.mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(60 * number, 60 * number + 90, (30 + index, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path


def command(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code or 0


def test_from_two_names_and_a_folder_to_a_student(folder, capsys):
    assert command("recipe", "new", "resnet14", "resnet8", "--data", "pets", "--size", "16", "-o", "pets.toml") == 0
    assert "pets.toml is written. Train with: cka-probe distill pets.toml" in capsys.readouterr().out
    text = (folder / "pets.toml").read_text()
    content = tomllib.loads(text)
    assert content["student"] == {"model": "resnet8", "layers": ["layer1", "layer2", "layer3"]}
    assert content["teacher"]["layers"] == ["layer1", "layer2", "layer3"]
    assert content["data"] == {"name": "folder", "root": "pets", "size": 16, "workers": 2}
    assert "12 training samples, 3 classes" in text
    few = ["--set", "train.epochs=1", "--set", "teacher.train.epochs=1", "--set", "data.workers=0"]
    assert command("distill", "pets.toml", *few, "-q") == 0
    student = load_student(folder / "runs" / "pets" / "rcka" / "seed_0")
    assert student.stage_layers == ("layer1", "layer2", "layer3")
    card = (folder / "runs" / "pets" / "rcka" / "seed_0" / "student.md").read_text()
    assert "3 outputs: a cow's, cats, dogs." in card
    assert command("recipe", "new", "resnet14", "resnet8", "--data", "pets", "-o", "pets.toml") == 2
    assert "pets.toml exists. Choose another name with -o, or remove it." in capsys.readouterr().err
    assert (folder / "pets.toml").read_text() == text


@pytest.mark.parametrize(
    ("teacher", "student", "data", "layers"),
    [
        ("wrn_16_2", "vgg8", "digits", ["block1", "block2", "block3"]),
        ("torchvision:resnet18", "ResNet18", "digits", ["layer1", "layer2", "layer3", "layer4"]),
        ("own.py:teacher", "own.py:student", "own.py:load", None),
    ],
)
def test_the_recipe_fits_the_networks(folder, teacher, student, data, layers):
    (folder / "own.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n"
        "def net(width):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))\n"
        "def teacher():\n    return net(16)\n"
        "def student():\n    return net(8)\n"
        "def load():\n"
        "    data = TensorDataset(torch.randn(32, 1, 16, 16), torch.arange(32) % 4)\n    return data, data\n"
    )
    text = new_recipe(teacher, student, data_of(data))
    (folder / "new.toml").write_text(text)
    recipe = Recipe.load("new.toml", ["train.epochs=1", "train.batch_size=16"])
    if layers is None:
        assert recipe.teacher.train is None  # whether its code loads weights cannot be known
        run_recipe(recipe, progress=False)
        assert (run_directory(recipe) / "student.md").is_file()
        sys.modules.pop("own", None)
    else:
        assert recipe.teacher.layers[-len(layers) :] == layers[-len(recipe.teacher.layers) :]
        assert recipe.teacher.train is not None
        check_recipe(recipe, 10)
    assert len(recipe.teacher.layers) == len(recipe.student.layers)


def test_two_classes_have_no_similarities_between_classes(folder):
    for part in ("train", "test"):
        shutil.rmtree(folder / "pets" / part / "a cow's")
    (folder / "two.toml").write_text(new_recipe("resnet14", "resnet8", data_of("pets", 16)))
    few = ["train.epochs=1", "teacher.train.epochs=1", "data.workers=0"]
    recipe = Recipe.load("two.toml", few)
    assert recipe.loss.options["inter_weight"] == 0
    assert run_recipe(recipe, progress=False).history["train_loss"].notna().all()


def test_a_teacher_with_weights_is_not_trained(folder):
    save_weights(build("resnet14", 3), folder / "teacher.safetensors")
    text = new_recipe("resnet14", "resnet8", data_of("pets"), teacher_weights="teacher.safetensors")
    content = tomllib.loads(text)
    assert content["teacher"]["weights"] == "teacher.safetensors"
    assert "train" not in content["teacher"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet14", "resnet9"], "There is no network 'resnet9'"),
        (["resnet14", "resnet8", "--data", "pest"], "--data pest: there is no data set 'pest'."),
        (["resnet14", "resnet8", "--data", "."], "holds no data set that is known here. Your own images are expected"),
        (["resnet14", "resnet8", "--data", "own.py"], "say which function loads the data: own.py:FUNCTION"),
        (["resnet14", "resnet8", "--data", "imagenet:nowhere"], "does not exist"),
        (["resnet14", "resnet8", "--data", "cifar10:pets", "--size", "8"], "size cannot be set for cifar10"),
        (["resnet14"], "Missing argument"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, arguments, message):
    assert command("recipe", "new", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not list(folder.glob("*.toml"))
