"""`cka-probe signature` writes what `cka-probe compare` compares."""

import json

import numpy as np
import pytest
from command_line import run
from safetensors.torch import save_file

import cka_probe as cp
from cka_probe.distill.models import build

SMALL = ("--samples", 48, "--batch-size", 16, "--image-size", 16, "--num-classes", 10, "--layers", "layer?")


def test_signatures_of_all_forms_are_compared(capsys, tmp_path):
    nets = {name: build(name, num_classes=10) for name in ("resnet8", "resnet14")}
    for name, net in nets.items():
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
        for form in ("exact", "half", "sketch"):
            path, weights = tmp_path / f"{name}.{form}.npz", tmp_path / f"{name}.safetensors"
            code, out, _ = run(capsys, "signature", name, *SMALL, "--weights", weights, "--form", form, "-o", path)
            assert code == 0
            assert str(path) in out
            assert "no weights given" not in out

    def values(*arguments):
        return np.array(json.loads(run(capsys, "compare", *arguments, "--json")[1])["values"])

    weights = ("--weights-x", tmp_path / "resnet8.safetensors", "--weights-y", tmp_path / "resnet14.safetensors")
    direct = values("resnet8", "resnet14", *weights, *SMALL)
    # 3 minibatches of 16 samples have 360 entries, fewer than a sketch: it loses nothing but digits.
    for x, y, error in (("exact", "exact", 1e-6), ("half", "half", 5e-5), ("sketch", "exact", 5e-4)):
        found = values(tmp_path / f"resnet8.{x}.npz", tmp_path / f"resnet14.{y}.npz")
        np.testing.assert_allclose(found, direct, atol=error)
    assert cp.load_signature(tmp_path / "resnet8.sketch.npz").name == "resnet8"


def test_the_size_and_the_seed_of_a_sketch(capsys, tmp_path):
    path = tmp_path / "a.npz"
    options = ("--form", "sketch", "--size", 100, "--sketch-seed", 3, "--name", "mine", "-q")
    code, out, _ = run(capsys, "signature", "resnet8", *SMALL, *options, "-o", path)
    assert (code, out) == (0, "")
    found = cp.SketchedSignature.load(path)
    assert any("no weights given" in note for note in found.notes)
    assert (found.size, found.seed, found.name, found.vectors.shape) == (100, 3, "mine", (3, 100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", 128), "--size and --sketch-seed are for --form sketch"),
        (("--form", "short"), '`form` must be "exact", "half", "sketch"'),
        (("-o", "a.txt"), "saved as .npz"),
        (("-o", "missing/a.npz"), "does not exist"),
        (("--kernel", "best"), "No kernel is called"),
        (("--layers", "layr1"), "layer1"),
    ],
)
def test_mistakes_are_said(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, "signature", "resnet8", *SMALL, "-o", "a.npz", *arguments)
    assert code == 2
    assert message in error
    assert list(tmp_path.iterdir()) == []
