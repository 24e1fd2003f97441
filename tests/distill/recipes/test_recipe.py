"""Recipes: messages name the key; every recipe of examples/recipes runs one step on small files of the right format."""

import hashlib
import json
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from cka_probe.distill.models import build
from cka_probe.distill.models.sources import load_model
from cka_probe.distill.recipes.experiment import check_recipe, finished, load_teacher, run_directory, run_recipe
from cka_probe.distill.recipes.methods import METHODS, build_loss
from cka_probe.distill.recipes.recipe import Recipe
from cka_probe.distill.training.checkpoints import save_weights

RECIPES = sorted((Path(__file__).parents[3] / "examples" / "recipes").glob("*.toml"))

SMALL = """
[teacher]
model = "resnet8"
[student]
model = "resnet8"
[data]
name = "digits"
size = 8
train_per_class = 2
[train]
epochs = 1
batch_size = 20
"""


def recipe(tmp_path, text=SMALL, *changes):
    path = tmp_path / "small.toml"
    path.write_text(text)
    return Recipe.load(path, [f'output.directory="{tmp_path / "runs"}"', *changes])


def test_there_is_a_recipe_for_every_pair():
    names = ["cifar100"] * 9 + ["digits.toml", "fashion"] + ["imagenet"] * 2
    assert [path.name.partition("_")[0] for path in RECIPES] == names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a tiny CIFAR-100 archive and ImageNet tree where the recipes expect them; return a writer of weights."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 8), ("test", 4)):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        entry = {"fine_labels": list(range(count)), "coarse_labels": [0] * count, "data": pixels}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    for part in ("train", "val"):
        for label in ("n01440764", "n01443537", "n01484850", "n01491361"):
            place = tmp_path / "data" / "imagenet" / part / label
            place.mkdir(parents=True)
            pixels = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{label}_0.JPEG")

    def write_weights(source, path, classes):
        torch.manual_seed(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": load_model(source, num_classes=classes).state_dict()}, path)

    return write_weights


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_one_step(path, files):
    chosen = Recipe.load(path, ["train.epochs=1", "data.workers=0"])
    if chosen.teacher.weights is not None:
        files(chosen.teacher.model, chosen.teacher.weights, 100 if chosen.data.name == "cifar100" else 4)
    else:
        less = [f"{section}.{key}" for section in ("data", "teacher.data") for key in ("size=8", "train_per_class=20")]
        chosen = Recipe.load(path, ["train.epochs=1", "teacher.train.epochs=1", *less])
    result = run_recipe(chosen, progress=False)
    directory = run_directory(chosen)
    assert np.isfinite(result.history["train_loss"]).all()
    assert {"cross_entropy", "features", "intra", "inter"} <= set(result.history)
    assert Recipe.load(directory / "recipe.toml") == chosen
    assert finished(chosen)["method"] == "rcka"
    facts = json.loads((directory / "environment.json").read_text())
    assert facts["versions"]["torch"]
    assert facts["seed"] == 0


@pytest.mark.parametrize("method", ["dkd", "fitnet", "sp", "rkd", "at", "kd", "rcka+kd"])
def test_the_other_methods_of_a_recipe_run(method, files):
    path = next(path for path in RECIPES if path.stem == "cifar100_vgg13_mobilenetv2")
    chosen = Recipe.load(path, ["train.epochs=1", "data.workers=0"]).with_method(method)
    files(chosen.teacher.model, chosen.teacher.weights, 100)
    result = run_recipe(chosen, progress=False)
    assert np.isfinite(result.history["train_loss"]).all()
    settings = json.loads((run_directory(chosen) / "settings.json").read_text())
    one = {"fitnet": ("blocks.2", "relu2"), "sp": ("blocks.6", "relu4"), "rkd": ("avgpool", "pool4")}
    if method in one:
        assert (settings["student_layers"], settings["teacher_layers"]) == ([one[method][0]], [one[method][1]])
    assert settings["ce_weight"] == (0.1 if method == "kd" else 1.0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_layers_and_options_of_every_method_exist(path, files):
    chosen = Recipe.load(path, ["teacher.weights=w.pth"] if "[teacher.train]" not in path.read_text() else [])
    Path("w.pth").touch()
    check_recipe(chosen, 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.epohcs=3"], "small.toml: unknown key 'train.epohcs'. Did you mean 'epochs'"),
        (["trian.epochs=3"], "unknown key 'trian'. Did you mean 'train'"),
        (["output.zzz=3"], "unknown key 'output.zzz'. Known names are 'directory'"),
        (["train.epochs=0"], "'train.epochs': input should be greater than or equal to 1, got 0"),
        (["train.epochs=many"], "'train.epochs': input should be a valid integer.*, got 'many'"),
        (["train.batch_size=1"], "'train.batch_size': input should be greater than or equal to 4, got 1"),
        (["train.schedule=steps"], "'train.schedule': input should be 'step' or 'cosine', got 'steps'"),
        (["train.schedule=cosine", "train.decay=0.5"], 'train: `milestones` and `decay` belong to schedule = "step"'),
        (["train.optimizer=adamw", "train.momentum=0.5"], "train: `momentum` belongs to optimizer"),
        (["data.name=cifra10"], "data.name: there is no data set 'cifra10'. Did you mean 'cifar10'"),
        (["loss.name=ce+kd"], r"loss: ce\+kd: the cross-entropy is part of every method"),
        (['loss.name=["kd", "kd"]'], r"loss: kd\+kd: each method can be in a sum once"),
        (['loss.name=["rcka", "kdd"]'], "loss: there is no method 'kdd'. Did you mean 'kd'"),
        (
            ["loss.name=rcka+kd", "loss.weight=1"],
            r"rcka\+kd has no option 'weight'. Options of a sum belong to .*\[loss.kd\]",
        ),
        (
            ["loss.name=rcka+kd", "loss.kd=1"],
            r"kd is a part of rcka\+kd, and its options are a section \[loss.kd\], got 1",
        ),
        (["loss.name=rcka+kd", "loss.kd.wieght=1"], "kd has no option 'wieght'. Did you mean 'weight'"),
        (["loss.kd.weight=1"], r"rcka has no option 'kd'. The sum of both is name = \[\"rcka\", \"kd\"\]"),
        (["loss.intra_weight={ until = 0.5 }"], "loss: rcka.intra_weight: `to` is missing. A weight that grows"),
        (
            ["loss.intra_weight={ to = 15, untill = 0.5 }"],
            "rcka.intra_weight has no option 'untill'. Did you mean 'until'",
        ),
        (["loss.intra_weight={ to = -1, until = 0.5 }"], "rcka.intra_weight.to must be a number of at least 0, got -1"),
        (
            ["loss.intra_weight={ to = 1, until = 15 }"],
            "rcka.intra_weight.until must be a number above 0 and at most 1",
        ),
        (["loss.intra_weight={ to = 1, until = 1, shape = 'cos' }"], "intra_weight.shape must be .* got 'cos'"),
        (["loss.layers=[]", "loss.student_layers=['layer1']"], "loss: `layers` are those of both networks"),
        (["methods.sp.student_layers=['layer1']"], "methods.sp: give both `student_layers` and `teacher_layers`"),
        (["loss.student_layers=['layer1']", "loss.teacher_layers=['layer1', 'layer2']"], "pair by pair, got 1 and 2"),
        (["data.name=cifar100"], "data: cifar100 needs `root`"),
        (["data.name=cifar100", "data.root=data"], "data: train_per_class, size cannot be set for cifar100"),
        (["data.root=data"], "data: root cannot be set for digits"),
        (["loss.name=rkca"], "loss: there is no method 'rkca'. Did you mean 'rcka'"),
        (["loss.intra_wieght=3"], "loss: rcka has no option 'intra_wieght'. Did you mean 'intra_weight'"),
        (["methods.lcka.intra_wieght=3"], "lcka has no option 'intra_wieght'"),
        (["methods.zz.weight=3"], "there is no method 'zz'"),
        (["loss.ce_weight=-1"], "'loss.ce_weight': input should be greater than or equal to 0"),
        (["paper.rkca=70"], "paper: there is no 'rkca'. Did you mean 'rcka'"),
        (["teacher.weights=a.pth", "teacher.train.epochs=3"], "teacher: give `weights` or a section `train`, not both"),
        (["teacher.data.name=digits"], "teacher: `data` is the training data of the teacher, but there is no section"),
        (["student.model=3"], "'student.model': input should be a valid string, got 3"),
        (["epochs"], "written section.key=value, got 'epochs'"),
        (["name.x=1"], "'name' is not a section"),
    ],
)
def test_messages_name_the_key(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(tmp_path, SMALL, *changes)


def test_missing_sections_files_and_broken_toml(tmp_path):
    with pytest.raises(ValueError, match="'student' is missing"):
        recipe(tmp_path, SMALL.replace("[student]", "[other]"))
    with pytest.raises(ValueError, match=r"'student\.model' is missing"):
        recipe(tmp_path, SMALL.replace('[student]\nmodel = "resnet8"', "[student]"))
    with pytest.raises(ValueError, match=r"small.toml is not a TOML file: .*line 2"):
        recipe(tmp_path, "\n[teacher\n")
    with pytest.raises(FileNotFoundError, match=r"no recipe .*smal.toml. Did you mean .*small.toml"):
        Recipe.load(tmp_path / "smal.toml")


def test_changes_are_toml_or_text(tmp_path):
    changed = recipe(
        tmp_path, SMALL, "train.epochs=7", 'student.layers=["layer1"]', "teacher.model=vgg8", "loss.name=kd"
    )
    assert (changed.train.epochs, changed.student.layers, changed.teacher.model) == (7, ["layer1"], "vgg8")
    assert changed.loss.name == "kd"
    assert changed.name == "small"


def test_a_saved_recipe_is_the_same(tmp_path):
    chosen = recipe(tmp_path, SMALL, "loss.kernel=rbf(fraction=0.5)", "paper.kd=71.5", "diagnostics.every=3")
    again = tmp_path / "again.toml"
    again.write_text(chosen.to_toml())
    assert Recipe.load(again) == chosen
    assert tomllib.loads(chosen.to_toml())["train"]["weight_decay"] == 5e-4


def test_methods_take_their_own_options(tmp_path):
    chosen = recipe(tmp_path, SMALL, "loss.intra_weight=3", "methods.lcka.intra_weight=4", "methods.lcka.ce_weight=0.5")
    assert chosen.with_method("rcka", 3).loss.options == {"intra_weight": 3}
    assert chosen.with_method("rcka", 3).train.seed == 3
    assert chosen.with_method("lcka").loss.options == {"intra_weight": 4}
    assert chosen.with_method("lcka").loss.ce_weight == 0.5
    assert chosen.with_method("kd").loss.options == {}
    with pytest.raises(ValueError, match=r"no method 'kdd'\. Did you mean 'kd'"):
        chosen.with_method("kdd")


def test_each_method_compares_its_own_layers(tmp_path):
    changes = ["methods.sp.layers=['layer3']", "methods.fcka.student_layers=['layer1']"]
    changes += ["methods.fcka.teacher_layers=['layer2']", "teacher.train.epochs=1"]
    chosen = recipe(tmp_path, SMALL, *changes)
    taps = {}
    for method in ("sp", "fcka", "rcka"):
        cell = chosen.with_method(method)
        run_recipe(cell, progress=False)
        settings = json.loads((run_directory(cell) / "settings.json").read_text())
        taps[method] = settings["student_layers"], settings["teacher_layers"]
    every = ["layer1", "layer2", "layer3"]
    assert taps == {"sp": (["layer3"],) * 2, "fcka": (["layer1"], ["layer2"]), "rcka": (every, every)}
    other = recipe(tmp_path, SMALL, *changes, "methods.sp.layers=['layer2']")
    with pytest.raises(ValueError, match="holds a run of another recipe: loss differs"):
        finished(other.with_method("sp"))
    with pytest.raises(ValueError, match=r"methods.sp.layers: resnet8 has no layer 'layr3'. Did you mean 'layer3'"):
        run_recipe(recipe(tmp_path, SMALL, "methods.sp.layers=['layr3']", "name=other"), progress=False)


def test_parts_of_a_sum_have_the_options_that_they_have_alone(tmp_path):
    changes = ["loss.intra_weight=3", "methods.kd.weight=0.5", "methods.rcka+kd.ce_weight=0.7"]
    chosen = recipe(tmp_path, SMALL, *changes)
    both = chosen.with_method("rcka+kd").loss
    assert both.options == {"rcka": {"intra_weight": 3}, "kd": {"weight": 0.5}}
    assert both.ce_weight == 0.7
    own = recipe(tmp_path, SMALL, *changes, "methods.rcka+kd.kd.weight=2").with_method("rcka+kd").loss
    assert own.options == {"rcka": {"intra_weight": 3}, "kd": {"weight": 2}}
    named = recipe(tmp_path, SMALL, 'loss.name=["rcka", "kd"]', "loss.kd.weight=0.25")
    assert named.loss.name == "rcka+kd"
    again = tmp_path / "again.toml"
    again.write_text(named.to_toml())
    assert Recipe.load(again) == named


def test_a_changed_ramp_is_another_recipe(tmp_path):
    changes = ["loss.name=lcka", "loss.intra_weight={ to = 2, until = 0.5 }", "teacher.train.epochs=1"]
    chosen = recipe(tmp_path, SMALL, *changes)
    again = tmp_path / "again.toml"
    again.write_text(chosen.to_toml())
    assert Recipe.load(again) == chosen
    run_recipe(chosen, progress=False)
    assert finished(chosen) is not None
    with pytest.raises(ValueError, match="holds a run of another recipe: loss differs"):
        finished(recipe(tmp_path, SMALL, *changes, "loss.intra_weight={ to = 2, until = 0.6 }"))


def test_losses_by_name():
    assert build_loss("ce", {}) is None
    loss = build_loss("fcka", {"weight": 2, "kernel": "rbf(fraction=0.5)"})
    assert loss.weight == 2
    assert loss.kernel.fraction == 0.5
    with pytest.raises(ValueError, match="loss fcka: `weight` must not be negative"):
        build_loss("fcka", {"weight": -1})
    with pytest.raises(ValueError, match=r"fcka has no option 'wieght'\. Did you mean 'weight'"):
        build_loss("fcka", {"wieght": -1})
    with pytest.raises(ValueError, match="ce has no option 'weight'"):
        build_loss("ce", {"weight": 1})


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ce"])
def test_every_method_has_its_loss(name):
    assert isinstance(build_loss(name, {}), torch.nn.Module)


def test_a_teacher_without_weights_is_noted(tmp_path):
    with pytest.warns(UserWarning, match=r"teacher resnet8 has no weights.*Set teacher.weights"):
        run_recipe(recipe(tmp_path), progress=False)
    run_recipe(recipe(tmp_path).with_method("ce"), progress=False)  # "ce" needs no teacher


def test_only_a_teacher_that_is_known_to_be_random_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_teacher.py").write_text(
        "from cka_probe.distill.models import build\ndef make():\n    return build('resnet8', 10)\n"
    )
    # It may have loaded its weights itself: no warning, which would be an error here.
    load_teacher(recipe(tmp_path, SMALL, 'teacher.model="own_teacher.py:make"'), 10)
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.ViTConfig(**sizes, image_size=8, patch_size=4).save_pretrained(tmp_path / "vit")
    with pytest.warns(UserWarning, match="teacher hf:vit has no weights"):
        load_teacher(recipe(tmp_path, SMALL, 'teacher.model="hf:vit"'), 10)


def test_the_teacher_is_trained_once_and_results_are_refused_to_other_recipes(tmp_path):
    options = ["teacher.train.epochs=1", "teacher.data.name=digits", "teacher.data.size=8"]
    options += ["teacher.data.train_per_class=5"]
    chosen = recipe(tmp_path, SMALL, *options)
    assert finished(chosen) is None
    first = run_recipe(chosen, progress=False)
    weights = tmp_path / "runs" / "small" / "teacher" / "last.safetensors"
    written = weights.stat().st_mtime_ns
    run_recipe(chosen.with_method("fcka"), progress=False)
    assert weights.stat().st_mtime_ns == written
    assert finished(chosen)["last_accuracy"] == first.last_accuracy
    with pytest.raises(ValueError, match="holds a run of another recipe: train differs"):
        finished(recipe(tmp_path, SMALL, *options, "train.learning_rate=0.2"))
    files = {path: path.read_bytes() for path in run_directory(chosen).iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds a run of another recipe: train differs"):
        run_recipe(recipe(tmp_path, SMALL, *options, "train.learning_rate=0.2"), progress=False)
    assert {path: path.read_bytes() for path in run_directory(chosen).iterdir() if path.is_file()} == files
    again = recipe(tmp_path, SMALL, *options, "train.learning_rate=0.2")
    run_recipe(again, resume=False, progress=False)
    assert finished(again) is not None


def test_all_that_a_recipe_says_reaches_the_run(tmp_path):
    changes = ["train.schedule=cosine", "train.warmup=1", "train.optimizer=adamw", "train.accumulation_steps=2"]
    changes += ["output.tensorboard=true", "output.teacher_cache=true", "output.checkpoint_steps=1"]
    changes += ["diagnostics.every=1", "diagnostics.heatmap_every=1", "diagnostics.samples=64", "loss.name=fcka"]
    changes += ["teacher.train.epochs=1", 'student.layers=["layer1"]', 'teacher.layers=["layer2"]', "train.epochs=2"]
    chosen = recipe(tmp_path, SMALL, *changes)
    result = run_recipe(chosen, progress=False)
    settings = json.loads((run_directory(chosen) / "settings.json").read_text())
    assert settings["schedule"].startswith("CosineDecay(final=0.0, warmup=1) #")
    assert "AdamW" in settings["optimizer"]
    assert (settings["student_layers"], settings["teacher_layers"]) == (["layer1"], ["layer2"])
    assert settings["accumulation"] == [2, "exact"]
    assert result.history["lr"].tolist() == [0.025, 0.05]
    assert (run_directory(chosen) / "tensorboard").exists()
    assert (run_directory(chosen) / "heatmaps" / "epoch_002.png").exists()
    assert list((tmp_path / "runs" / "teacher_outputs").iterdir())


def test_a_run_goes_on_to_more_epochs(tmp_path):
    short, long = (recipe(tmp_path, SMALL, "loss.name=ce", f"train.epochs={epochs}") for epochs in (1, 2))
    run_recipe(short, progress=False)
    assert finished(short)["epochs"] == 1
    assert finished(long) is None
    assert run_recipe(long, progress=False).notes == ("resumed after epoch 1, step 0",)
    assert finished(long)["epochs"] == 2
    assert finished(short) is None


def test_a_result_counts_only_with_the_weights_that_it_was_made_with(tmp_path):
    weights = tmp_path / "teacher.safetensors"
    torch.manual_seed(1)
    save_weights(build("resnet8", 10), weights)
    chosen = recipe(tmp_path, SMALL, f'teacher.weights="{weights}"', "teacher.model=resnet8")
    run_recipe(chosen, progress=False)
    assert finished(chosen) is not None
    torch.manual_seed(2)
    save_weights(build("resnet8", 10), weights)
    with pytest.raises(ValueError, match=r"holds a run with other files: teacher.weights was .* and is now"):
        finished(chosen)
    with pytest.raises(ValueError, match=r"other settings: teacher_weights was"):
        run_recipe(chosen, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss.intra_weight=-1", "intra_weight"),
        ('student.layers=["layr1"]', r"student.layers: resnet8 has no layer 'layr1'. Did you mean 'layer1'"),
        ('teacher.layers=["head"]', r"teacher.layers: \S+ has no layer 'head'"),
        ("student.model=resnet7", "There is no network 'resnet7'"),
        ("train.milestones=[0.5, 0]", "milestones"),
    ],
)
def test_a_mistake_shows_before_the_teacher_is_trained(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe(tmp_path, SMALL, "teacher.train.epochs=1", change), progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "..", ".", "", "a\\b", "tab\t", "C:evil"])
def test_a_name_cannot_leave_the_folder_of_the_results(tmp_path, name):
    with pytest.raises(ValueError, match=r"name: it is the name of a folder of results"):
        recipe(tmp_path, SMALL, f"name={json.dumps(name)}")


def test_deep_nesting_and_control_characters_are_value_errors(tmp_path):
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 100_000)
    with pytest.raises(ValueError, match=r"deep.toml is not a"):
        Recipe.load(deep)
    with pytest.raises(ValueError, match=r"nested too deeply|is written"):
        recipe(tmp_path, SMALL, "train.epochs=" + "[" * 100_000)
    with pytest.raises(ValueError, match="one line without control characters"):
        recipe(tmp_path, SMALL, "train.epochs=2\ntrain.seed=7")
