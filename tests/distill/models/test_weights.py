"""Weights from files: layouts of files, and messages about files that do not fit."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cka_probe.distill.models import build, load_weights


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    network = build("resnet8", num_classes=10)
    network(torch.randn(4, 3, 16, 16))  # moves the running statistics
    return network


@pytest.fixture
def target():
    torch.manual_seed(1)
    return build("resnet8", num_classes=10)


def assert_same(network, source):
    expected = source.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


WRAPPINGS = {
    "plain": lambda state: state,
    "model": lambda state: {"epoch": 240, "model": state, "optimizer": {"state": {}}},
    "state_dict": lambda state: {"state_dict": state, "best_acc": torch.tensor(70.0)},
    "numpy_number": lambda state: {
        "model": state,
        "accuracy": np.float64(72.5),
        "loss": np.float32(1),
        "n": np.int64(3),
    },
    "data_parallel": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "compiled_inside": lambda state: {
        key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()
    },
    "averaged": lambda state: {
        "n_averaged": torch.tensor(3),
        **{f"module.{key}": value for key, value in state.items()},
    },
    "averaged_in_parallel": lambda state: {
        "module.n_averaged": torch.tensor(3),
        **{f"module.module.{key}": value for key, value in state.items()},
    },
    "lightning": lambda state: {
        "epoch": 3,
        "pytorch-lightning_version": "2",
        "state_dict": {f"model.{key}": value for key, value in state.items()},
    },
    "key_of_its_own": lambda state: {"epoch": 3, "backbone": state, "optimizer": {"state": {}, "param_groups": []}},
    "fully_sharded": lambda state: {f"_fsdp_wrapped_module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "distiller": lambda state: {
        "state_dict": {
            **{f"module.student.{key}": value for key, value in state.items()},
            **{f"module.teacher.{key}": value for key, value in build("resnet14", 10).state_dict().items()},
            "module.loss.weight": torch.ones(3),
        },
        "hyper_parameters": {"epochs": 3},
    },
    "arguments": lambda state: {
        "args": argparse.Namespace(lr=0.1, output=Path("runs"), layers=["a"]),
        "model": state,
    },
    "old_torch": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_of_torch_files(source, target, tmp_path, wrapping, zipped):
    path = tmp_path / "teacher.pth"
    torch.save(WRAPPINGS[wrapping](source.state_dict()), path, _use_new_zipfile_serialization=zipped)
    if wrapping == "old_torch":
        for module in target.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked += 1
    assert load_weights(target, path) is target
    assert_same(target, source)


def test_numpy_numbers_of_either_numpy(source, target, tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save({"model": source.state_dict(), "best": np.float64(1)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    new, old = b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar"
    assert new in content or old in content
    path.write_bytes(content.replace(new, old) if new in content else content.replace(old, new))
    load_weights(target, path)
    assert_same(target, source)


def test_safetensors(source, target, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_file(source.state_dict(), path)
    load_weights(target, str(path))
    assert_same(target, source)


def test_missing_file(target, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no weight file '.*none\.pth'. Weights are never downloaded"):
        load_weights(target, tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="There is no weight file"):
        load_weights(target, tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_file_is_named(source, target, tmp_path, suffix, damage):
    path = tmp_path / f"teacher{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"<html>404</html>", "empty": b""}[damage])
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}' is not a readable weight file: damaged, cut short"):
        load_weights(target, path)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_code_in_a_file_does_not_run(target, tmp_path):
    path = tmp_path / "whole_model.pth"
    torch.save(target, path)
    with pytest.raises(
        ValueError, match=r"holds Python objects beside its weights\. .*torch\.save\(model\.state_dict\(\)"
    ):
        load_weights(target, path)


def test_no_state_dict(target, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"epoch": 3, "weights": {}}, path)
    with pytest.raises(ValueError, match=r"holds no state dict: .* it has the keys 'epoch', 'weights'"):
        load_weights(target, path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"holds no state dict: .* it has a list"):
        load_weights(target, path)
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"holds no state dict: .* it has nothing in it"):
        load_weights(target, path)


def test_another_network_is_refused_and_nothing_changes(target, tmp_path):
    path = tmp_path / "resnet14.pth"
    torch.save(build("resnet14", num_classes=10).state_dict(), path)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"does not fit this ResNet; not in the network: layer1\.1\.conv1.* and \d+ more"
    ):
        load_weights(target, path)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_another_number_of_classes_is_refused(target, tmp_path):
    path = tmp_path / "resnet8.pth"
    torch.save(build("resnet8", num_classes=100).state_dict(), path)
    message = r"another shape: fc\.weight is \(100, 64\) in the file and \(10, 64\) in the network, fc\.bias is"
    with pytest.raises(ValueError, match=message):
        load_weights(target, path)


def test_missing_entries_are_named(source, target, tmp_path):
    path = tmp_path / "resnet8.pth"
    state = source.state_dict()
    del state["layer2.0.downsample.0.weight"]
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"missing from the file: layer2\.0\.downsample\.0\.weight\. Check the network"
    ):
        load_weights(target, path)


def test_several_state_dicts_need_a_choice(source, target, tmp_path):
    path = tmp_path / "gan.pth"
    torch.save({"generator": source.state_dict(), "discriminator": target.state_dict()}, path)
    with pytest.raises(ValueError, match="holds several state dicts, 'generator', 'discriminator'"):
        load_weights(target, path)


def test_a_network_that_has_a_prefix_itself_keeps_it(tmp_path):
    wrapped, other = nn.Sequential(), nn.Sequential()
    wrapped.add_module("model", nn.Linear(2, 2))
    other.add_module("model", nn.Linear(2, 2))
    torch.save(wrapped.state_dict(), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.model.weight, wrapped.model.weight)


def test_a_script_archive_is_no_file_of_weights(tmp_path, target):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not gone
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "net.pt")
        with pytest.raises(ValueError, match="is a TorchScript archive"):
            load_weights(target, tmp_path / "net.pt")


def test_two_networks_that_both_fit_need_a_choice(source, target, tmp_path):
    state = {f"{part}.{key}": value for part in ("student", "teacher") for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "distiller.pt")
    with pytest.raises(ValueError, match=r"holds several networks that fit this ResNet: 'student\.', 'teacher\.'"):
        load_weights(target, tmp_path / "distiller.pt")


def test_another_head_can_be_ignored(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pt")
    network = build("resnet8", num_classes=7)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"keep this network's own 'fc', call load_weights with ignore_head=True"):
        load_weights(network, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt", ignore_head=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, own[key] if key.startswith("fc.") else source.state_dict()[key])


def test_ignore_head_is_for_one_layer(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pt")
    network = build("resnet8", num_classes=7)
    network.conv1 = nn.Conv2d(1, 16, 3, bias=False)
    with pytest.raises(ValueError, match=r"another shape: conv1.weight .* fc.weight"):
        load_weights(network, tmp_path / "w.pt", ignore_head=True)
