"""Files given to `compare`: saved results, signatures, and mixtures of them."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from torch import nn

import cka_probe as cp


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a saved result, two signatures, features and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2)]
    data = [torch.randn(12, 6) for _ in range(3)]
    for name, net in zip(("left", "right"), nets, strict=True):
        cp.signature(net, data, name=name, progress=False).save(f"{name}.npz")
    result = cp.compare(*nets, data, progress=False, names=("left", "right"))
    result.save("result.npz")
    np.savez("features.npz", a=np.random.default_rng(0).normal(size=(20, 3)))
    header = json.dumps({"format": "cka_probe.checkpoint"})
    np.savez("half.npz", header=np.array(header))
    return result


def test_a_saved_result_is_printed_and_drawn(files, capsys, tmp_path):
    code, out, err = run(capsys, "compare", "result.npz", "--plot", "r.png")
    assert code == 0
    assert repr(files) in out
    assert "result.npz is the saved result of a comparison" in err
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, "compare", "result.npz", "--json")
    np.testing.assert_array_equal(json.loads(out)["values"], files.values)


def test_two_signatures_are_compared(files, capsys):
    code, out, _ = run(capsys, "compare", "left.npz", "right.npz", "--json")
    found = json.loads(out)
    assert code == 0
    np.testing.assert_allclose(found["values"], files.values, atol=1e-6)
    assert (found["meta"]["model_x"], found["meta"]["model_y"]) == ("left", "right")
    code, out, _ = run(capsys, "compare", "left.npz", "--json")
    np.testing.assert_allclose(np.diag(json.loads(out)["values"]), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("result.npz", "result.npz", "-o", "r.npz"), "--output does not apply to two saved results"),
        (("result.npz", "resnet8"), "result.npz is the saved result of a comparison. Give it alone"),
        (("features.npz", "result.npz"), "result.npz is the saved result of a comparison. Give it alone"),
        (("result.npz", "--kernel", "rbf"), "--kernel: for networks only. A saved result is shown as it is."),
        (("left.npz", "right.npz", "--measure", "cka"), "--measure: for networks only. A signature has its own"),
        (("left.npz", "features.npz"), "left.npz is the signature of a network and features.npz is a file of features"),
        (("left.npz", "resnet8"), "a network cannot be compared with the signature of a network"),
        (("half.npz",), "half.npz is the checkpoint of an unfinished comparison"),
        (("net.pt",), "net.pt is a file of weights. Name the network"),
    ],
)
def test_files_that_do_not_go_together(files, capsys, arguments, message):
    code, out, err = run(capsys, "compare", *arguments)
    assert code == 2
    assert message in err
    assert out == ""


def test_features_with_a_layer_called_header_are_features(capsys, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", header=rng.normal(size=(20, 3)), footer=rng.normal(size=(20, 2)))
    code, out, _ = run(capsys, "compare", tmp_path / "x.npz", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == ["header", "footer"]
