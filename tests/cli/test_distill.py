"""The command line: distill and distill-table from end to end, exit codes, messages, and a quick --help."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

from cka_probe import __version__
from cka_probe.cli import main

RECIPE = """
[teacher]
model = "resnet8"
[teacher.train]
epochs = 1
[student]
model = "resnet8"
[data]
name = "digits"
size = 8
train_per_class = 4
[train]
epochs = 2
batch_size = 20
[paper]
rcka = 76.11
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)
    return "small.toml"


def command(*arguments):
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code or 0


def test_distill_from_end_to_end(recipe, tmp_path, capsys):
    assert command("distill", recipe, "--set", "train.epochs=1", "-o", "out", "--seed", "3") == 0
    directory = tmp_path / "out" / "small" / "rcka" / "seed_3"
    printed = capsys.readouterr().out
    assert "small, rcka, seed 3: test accuracy last" in printed
    assert "out/small/rcka/seed_3" in printed
    names = {path.name for path in directory.iterdir()}
    assert {"best.safetensors", "last.safetensors", "history.csv", "recipe.toml", "environment.json"} <= names
    assert len(pd.read_csv(directory / "history.csv")) == 1

    assert command("distill", recipe, "--set", "train.epochs=1", "-o", "out", "--seed", "3", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "rcka"
    assert result["notes"][-1] == "resumed after epoch 1, step 0"


def test_table_runs_what_is_missing(recipe, tmp_path, capsys):
    options = ["--methods", "ce, rcka", "--seeds", "2", "--set", "train.epochs=1", "--against", "ce"]
    assert command("distill-table", recipe, *options) == 0
    printed = capsys.readouterr().out
    assert "| small | RCKA | 2 |" in printed
    assert "| 76.11 |" in printed
    assert "paired t-test" in printed
    runs = tmp_path / "runs"
    assert sorted(path.name for path in (runs / "table").iterdir()) == [
        "runs.csv",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    before = {path: path.stat().st_mtime_ns for path in (runs / "small").rglob("*.pt")}
    (runs / "small" / "rcka" / "seed_1" / "result.json").unlink()
    assert command("distill-table", recipe, *options, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert [line["method"] for line in table] == ["ce", "rcka"]
    assert {path: path.stat().st_mtime_ns for path in (runs / "small").rglob("*.pt")} == before
    assert (runs / "small" / "rcka" / "seed_1" / "result.json").exists()
    other = ["--set", "train.epochs=1", "--set", "train.learning_rate=0.2"]
    assert command("distill-table", recipe, "--methods", "ce,rcka", "--seeds", "1", *other) == 2
    assert "holds a run of another recipe: train differs. Use another output directory, or --fresh" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "smal.toml"], "Error: There is no recipe smal.toml. Did you mean small.toml?\n"),
        (["distill", "small.toml", "--set", "train.epocs=1"], "unknown key 'train.epocs'. Did you mean 'epochs'?\n"),
        (["distill", "small.toml", "--method", "rkca"], "Error: there is no method 'rkca'. Did you mean 'rcka'?\n"),
        (["distill", "small.toml", "--set", "student.model=resnet9"], "There is no network 'resnet9'"),
        (
            ["distill", "small.toml", "--set", "student.layers=['layr1']"],
            "student.layers: resnet8 has no layer 'layr1'. Did you mean",
        ),
        (["distill", "small.toml", "--set", "data.train_per_class=2000"], "train_per_class"),
        (["distill", "small.toml", "--set", "student.weights=none.pth"], "student.weights: there is no file none.pth."),
        (["distill-table", "small.toml", "--methods", ","], "--methods names no method"),
        (["distill-table", "small.toml", "--against", "dkd"], "--against dkd is not among --methods ce,kd,rcka"),
        (["distill"], "Missing argument"),
        (["train"], "No such command"),
    ],
)
def test_a_users_mistake_is_one_message_and_code_2(recipe, capsys, arguments, message):
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split("│")) or message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_different_classes(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "flat.py").write_text(
        "import torch\ndef flat(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))\n"
    )
    monkeypatch.setattr(
        "cka_probe.distill.recipes.experiment.load_teacher",
        lambda *_: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7)),
    )
    code = command("distill", recipe, "--method", "lcka", "--set", "student.model=flat.py:flat", "-o", "classes")
    assert code == 2
    assert "The teacher has 7 classes and the student 10" in capsys.readouterr().err


def test_a_failed_run_is_code_1_and_debug_shows_the_traceback(recipe, tmp_path, capsys):
    assert command("distill", recipe, "-o", "out", "--set", "train.learning_rate=1e30", "--method", "ce") == 1
    assert "Error: The training loss is nan in epoch" in capsys.readouterr().err

    assert command("distill", recipe, "-o", "good", "--method", "ce") == 0
    for path in (tmp_path / "good" / "small" / "ce" / "seed_0").glob("checkpoint*"):
        path.write_bytes(b"nothing")
    assert command("distill", recipe, "-o", "good", "--method", "ce") == 1
    assert "Error: No checkpoint can be read" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="No checkpoint can be read"):
        main(["distill", recipe, "-o", "good", "--method", "ce", "--debug"])
    assert command("distill", recipe, "-o", "good", "--method", "ce", "--fresh") == 0


def test_ctrl_c_says_how_to_continue(recipe, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cka_probe.distill.recipes.experiment.run_recipe", stop)
    assert command("distill", recipe) == 130
    printed = capsys.readouterr().err
    assert "Stopped; the files of the run are in runs/small/rcka/seed_0. The same command continues" in printed


def test_a_teacher_without_weights_is_a_warning(recipe, tmp_path, capsys):
    (tmp_path / "small.toml").write_text(RECIPE.replace("[teacher.train]\nepochs = 1\n", ""))
    assert command("distill", recipe, "--set", "train.epochs=1") == 0
    assert "Warning: The teacher resnet8 has no weights" in capsys.readouterr().err


def test_version_and_help_without_torch(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"cka-probe {__version__}\n"
    script = (
        "import sys\nfrom cka_probe.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    for arguments in (["--help"], ["distill", "--help"], ["distill-table", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
