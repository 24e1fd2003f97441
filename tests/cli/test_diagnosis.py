"""A network that does not run on the data: the message says on what it runs."""

import json

import numpy as np
import pytest
from command_line import run

NETWORKS = """
import torch
from torch import nn

def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def large():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.Conv2d(4, 4, 7), nn.Flatten())

def grey_and_large():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=8), nn.Conv2d(4, 4, 7), nn.Flatten())

def tokens():
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))

def vectors():
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        raise KeyError("broken")

def broken():
    return Broken()
"""


@pytest.fixture(autouse=True)
def _networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(NETWORKS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grey", "It runs on images of 1 x 32 x 32: --channels 1."),
        ("large", "It runs on images of 3 x 64 x 64: --image-size 64."),
        ("grey_and_large", "It runs on images of 1 x 64 x 64: --image-size 64 --channels 1."),
        ("tokens", "It takes token numbers: give integers of shape (samples, length) as a file"),
        ("vectors", "It takes vectors of 5 numbers: give them as a file of shape (samples, 5)"),
        ("broken", "KeyError: 'broken'. Give inputs that it takes as a file"),
    ],
)
def test_the_message_says_on_what_the_network_runs(capsys, name, message):
    code, out, err = run(capsys, "compare", f"zoo.py:{name}", "--samples", 8, "--batch-size", 8)
    assert code == 2
    assert f"zoo.py:{name} (" in err
    assert "does not run on batches of shape (8, 3, 32, 32) from --data digits" in err
    assert message in err
    assert "defect" not in err
    assert out == ""


def test_what_the_message_says_works(capsys):
    options = ("--samples", 8, "--batch-size", 8, "--image-size", 64, "--channels", 1, "--json")
    assert run(capsys, "compare", "zoo.py:grey_and_large", *options)[0] == 0


def test_the_network_that_fails_is_named(capsys):
    code, _, err = run(capsys, "compare", "resnet8", "zoo.py:large", "--samples", 8, "--batch-size", 8)
    assert code == 2
    assert "Error: zoo.py:large (Sequential) does not run" in err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 3, 16, 16), np.uint8), "It runs on float32, but the data are uint8: convert them."),
        (np.zeros((8, 16, 16, 3), np.float32), "axes in the order (samples, channels, height, width)"),
        (np.zeros((8, 1, 16, 16), np.float32), "It runs on images of 3 x 16 x 16: give such images as a file"),
    ],
)
def test_arrays_of_a_file(capsys, array, message):
    np.save("x.npy", array)
    code, _, err = run(capsys, "compare", "resnet8", "--data", "x.npy")
    assert code == 2
    assert message in err


def test_networks_of_libraries_know_their_size(capsys):
    small = ("--samples", 4, "--batch-size", 4)
    code, _, err = run(capsys, "compare", "torchvision:alexnet", *small)
    assert code == 2
    assert "It runs on images of 3 x 224 x 224: --image-size 224." in err
    pytest.importorskip("timm", reason="needs timm")
    for command in (("compare", "timm:vit_tiny_patch16_224", *small), ("info", "timm:vit_tiny_patch16_224")):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert "AssertionError: Input height (32) doesn't match model (224). It runs on images of 3 x 224 x 224" in err


def test_mistakes_before_the_forward_keep_their_message(capsys):
    code, _, err = run(capsys, "compare", "zoo.py:large", "--layers", "nope")
    assert code == 2
    assert "nope" in err
    assert "does not run" not in err


def test_a_network_of_transformers_knows_its_size(capsys):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.ViTConfig(**sizes, image_size=48, patch_size=16).save_pretrained("vit")
    small = ("--samples", 8, "--batch-size", 4, "--layers", "blocks", "--json")
    code, _, err = run(capsys, "compare", "hf:vit", *small)
    assert code == 2
    assert "It runs on images of 3 x 48 x 48: --image-size 48." in err
    code, out, _ = run(capsys, "compare", "hf:vit", *small, "--image-size", 48)
    assert code == 0
    assert json.loads(out)["notes"][0] == "no weights given: hf:vit has random weights (seed 0)"
