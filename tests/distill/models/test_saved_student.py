"""`load_student`: the same outputs as the trained network, from safetensors and a description alone; clear refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from cka_probe.distill import distill, load_student
from cka_probe.distill.models import build
from cka_probe.distill.models.saved_student import describe_student
from cka_probe.distill.training.checkpoints import save_weights

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_weights(build("resnet8", 5), tmp_path / "best.safetensors")
    (tmp_path / "student.json").write_text(describe_student("resnet8", 5, ["a", "b", "c", "d", "e"]))
    return tmp_path


def test_the_network_is_built_and_has_its_weights(folder):
    torch.manual_seed(0)
    trained = build("resnet8", 5).eval()
    student = load_student(folder)
    assert not student.training
    assert torch.equal(student(IMAGES), trained(IMAGES))


def test_ones_own_class_is_passed(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    data = TensorDataset(torch.randn(16, 3, 2, 2), torch.arange(16) % 3)
    result = distill(None, network, data, data, epochs=2, batch_size=8, output_dir=tmp_path / "run", progress=False)
    student = load_student(tmp_path / "run", model=nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    assert torch.equal(student[1].weight, result.best_state["1.weight"])
    last = load_student(tmp_path / "run", nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), weights="last")
    assert torch.equal(last[1].weight, network[1].weight)
    with pytest.raises(ValueError, match=r"does not say which network .* load_student\('.*run', model=network\)"):
        load_student(tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit this Sequential"):
        load_student(tmp_path / "run", nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got type"):
        load_student(tmp_path / "run", nn.Linear)


def test_no_code_of_the_folder_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "evil.py").write_text("raise SystemError('it ran')")
    for source in ("evil.py:make", "evil:make", "os:abort"):
        (folder / "student.json").write_text(describe_student(source, 5, []))
        with pytest.raises(ValueError, match=rf"made by the code {source}, which is not run from here. Pass"):
            load_student(folder)
    assert load_student(folder, model=build("resnet8", 5)) is not None


def test_changed_and_incomplete_folders(folder):
    with pytest.raises(FileNotFoundError, match=r"has no last.safetensors"):
        load_student(folder, weights="last")
    with pytest.raises(FileNotFoundError, match=r"has no best.safetensors. Runs below it: "):
        load_student(folder.parent)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_student(folder / "nowhere")
    with pytest.raises(ValueError, match="`weights` must be"):
        load_student(folder, weights="first")
    for text in ("{", "[]", '{"model": "resnet8"}', json.dumps({"model": 3, "num_classes": 5})):
        (folder / "student.json").write_text(text)
        with pytest.raises(ValueError, match=r"student.json is damaged"):
            load_student(folder)
    (folder / "student.json").write_text(describe_student("resnet8", 6, []))
    with pytest.raises(ValueError, match="does not fit this"):
        load_student(folder)
    (folder / "student.json").write_text(describe_student("resnet8", 5, []))
    weights = folder / "best.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="damaged"):
        load_student(folder)
    changed = bytearray(whole)
    changed[-1] ^= 1  # one bit of one weight
    weights.write_bytes(bytes(changed))
    with pytest.raises(ValueError, match="its weights are not those that the run has written"):
        load_student(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file(tensors, weights)  # as other programs write it: without a digest
    assert load_student(folder)(IMAGES).shape == (4, 5)
