"""The options of the section train reach distill()."""

import json

import pytest

from cka_probe.distill.recipes.experiment import run_directory, run_recipe
from cka_probe.distill.recipes.recipe import Recipe

SMALL = """
[teacher]
model = "resnet8"

[student]
model = "resnet8"

[data]
name = "digits"
train_per_class = 8
size = 8

[loss]
name = "ce"

[train]
epochs = 2
batch_size = 32
schedule = "cosine"
per = "step"
warmup = 2
clip_norm = 0.5
ema = 0.9
evaluate_every = 2
patience = 5
columns = ["top5", "loss"]
channels_last = true

[output]
directory = "{directory}"
"""


def small(tmp_path, *changes):
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("{directory}", str(tmp_path / "runs")))
    return Recipe.load(path, changes)


def test_every_option_reaches_the_run(tmp_path):
    recipe = small(tmp_path)
    history = run_recipe(recipe, progress=False).history
    settings = json.loads((run_directory(recipe) / "settings.json").read_text())
    assert settings["schedule"].startswith("PerStep(schedule=CosineDecay(final=0.0, warmup=2)) #")
    found = {key: settings[key] for key in ("clip_norm", "ema", "evaluate_every", "patience", "channels_last")}
    assert found == {"clip_norm": 0.5, "ema": 0.9, "evaluate_every": 2, "patience": 5, "channels_last": True}
    assert history["step"].tolist() == [2, 4, 6]
    assert {"test_top5", "test_loss"} <= set(history.columns)
    assert history["lr"].iloc[0] == pytest.approx(0.05 * 2 / 3)
    again = Recipe.load(run_directory(recipe) / "recipe.toml")
    assert again.train == recipe.train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.ema=1.0", "train.ema"),
        ("train.clip_norm=0", "train.clip_norm"),
        ("train.per=hour", "train.per"),
        ("train.warmup=-1", "train.warmup"),
        ('train.columns=["f1"]', "`columns` of Evaluation may hold"),
    ],
)
def test_a_wrong_option_is_refused_by_its_key(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(small(tmp_path, change), progress=False)
