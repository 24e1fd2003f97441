"""The model card of a run: its numbers against scores computed here, and its code run as it stands."""

import re
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

import cka_probe as cp
from cka_probe.distill import Diagnostics, LogitCKALoss, digits, distill, load_student
from cka_probe.distill.models import build, load_weights
from cka_probe.distill.recipes.experiment import run_directory, run_recipe
from cka_probe.distill.recipes.recipe import Recipe

CONTENT = {
    "name": "card",
    "teacher": {"model": "resnet14", "train": {"epochs": 2, "batch_size": 20}},
    "student": {"model": "resnet8"},
    "data": {"name": "digits", "size": 8, "train_per_class": 6},
    "train": {"epochs": 2, "batch_size": 20, "learning_rate": 0.02},
}


def right(network, test):
    images, labels = test.tensors
    with torch.no_grad():
        return float((network.eval()(images).argmax(1) == labels).double().mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    chosen = Recipe.model_validate({**CONTENT, "output": {"directory": str(folder)}})
    return run_recipe(chosen, progress=False), run_directory(chosen)


def test_scores_and_similarities_are_those_of_the_networks(run):
    result, folder = run
    card = (folder / "student.md").read_text()
    test = digits(train_per_class=6, size=8)[1]
    teacher = load_weights(build("resnet14", 10), folder.parents[1] / "teacher" / "last.safetensors")
    student = load_student(folder)
    assert f"| teacher (the ceiling) | {right(teacher, test):.2%} |" in card
    assert f"| student, best (epoch {result.best_epoch}) | {right(student, test):.2%} |" in card
    torch.manual_seed(0)
    before = build("resnet8", 10)
    batches = [(test.tensors[0][start : start + 64],) for start in range(0, 512, 64)]
    for layer in ("layer1", "layer2", "layer3"):
        values = [
            cp.compare(teacher, network, batches, layers=[layer], progress=False).values[0, 0]
            for network in (before, student)
        ]
        assert f"| {layer} | {layer} | {values[0]:.3f} | {values[1]:.3f} |" in card
        assert np.isfinite(values).all()


def test_the_code_of_the_card_works(run):
    _, folder = run
    card = (folder / "student.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    names = {}
    exec(code, names)
    assert torch.equal(names["student"](torch.ones(1, 3, 8, 8)), load_student(folder)(torch.ones(1, 3, 8, 8)))
    recipe = re.search(r"```toml\n(.*?)```", card, re.DOTALL).group(1)
    (folder / "again.toml").write_text(recipe)
    assert Recipe.load(folder / "again.toml") == Recipe.load(folder / "recipe.toml")
    assert f"torch {version('torch')}, " in card


def test_labels_alone_a_network_of_ones_own_and_names_that_are_markdown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))\n"
        "def load():\n"
        "    data = TensorDataset(torch.randn(20, 3, 2, 2), torch.arange(20) % 2)\n"
        "    data.classes = ['<b>|*', 'b']\n"
        "    return data, data\n"
    )
    content = {**CONTENT, "student": {"model": "own.py:net"}, "data": {"name": "own.py:load"}, "loss": {"name": "ce"}}
    chosen = Recipe.model_validate(content)
    run_recipe(chosen, progress=False)
    card = (run_directory(chosen) / "student.md").read_text()
    assert r"2 outputs: \<b\>\|\*, b. It learned from the labels alone." in card
    assert "ceiling" not in card
    assert "Similarity" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    assert "model=load_model('own.py:net')" in code
    names = {}
    exec(code, names)
    assert names["student"](torch.ones(1, 3, 2, 2)).shape == (1, 2)
    sys.modules.pop("own", None)


def test_a_run_of_distill_has_a_card_too(tmp_path):
    torch.manual_seed(0)
    teacher, student = build("resnet14", 10), build("resnet8", 10)
    train, test = digits(train_per_class=4, size=8)
    options = {"epochs": 2, "batch_size": 20, "output_dir": tmp_path / "run", "progress": False}
    result = distill(teacher, student, train, test, LogitCKALoss(1, 1), **options, diagnostics=Diagnostics(every=1))
    card = (tmp_path / "run" / "student.md").read_text()
    assert f"| teacher (the ceiling) | {right(teacher, test):.2%} |" in card
    assert f"| student, best (epoch {result.best_epoch}) | {result.best_accuracy:.2%} |" in card
    measured = result.diagnostics[result.diagnostics["quantity"] == "cka"]["value"]
    assert f"| {measured.iloc[0]:.3f} | {measured.iloc[-1]:.3f} |" in card
    assert "| student | teacher | epoch 1 | epoch 2 |" in card
    names = {"network": build("resnet8", 10)}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1), names)
    assert torch.equal(names["student"].conv1.weight, result.best_state["conv1.weight"])


def test_a_loss_of_logits_compares_the_outputs(tmp_path):
    content = {**CONTENT, "loss": {"name": "kd"}, "output": {"directory": str(tmp_path)}}
    chosen = Recipe.model_validate(content)
    run_recipe(chosen, progress=False)
    card = (run_directory(chosen) / "student.md").read_text()
    found = re.search(r"\| outputs \| outputs \| (\S+) \| (\S+) \|", card)
    teacher = load_weights(build("resnet14", 10), tmp_path / "card" / "teacher" / "last.safetensors")
    torch.manual_seed(0)
    networks = build("resnet8", 10), load_student(run_directory(chosen))
    images = digits(train_per_class=6, size=8)[1].tensors[0]
    batches = [(images[start : start + 64],) for start in range(0, 512, 64)]
    for shown, network in zip(found.groups(), networks, strict=True):
        assert shown == f"{cp.compare(teacher, network, batches, layers='', progress=False).values[0, 0]:.3f}"
