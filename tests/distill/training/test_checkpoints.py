"""Checkpoints, and runs that are killed and resumed: the result is the same as without the interruption."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_runs import Mimic, images, killable, network, run, weights
from torch import nn

from cka_probe.distill.training import student_loop
from cka_probe.distill.training.checkpoints import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)


@pytest.fixture(scope="module")
def uninterrupted():
    return killable()


def assert_same_run(result, expected):
    assert torch.equal(weights(result.student), weights(expected.student))
    assert all(torch.equal(value, expected.best_state[name]) for name, value in result.best_state.items())
    drop = ["seconds"]
    pd.testing.assert_frame_equal(result.history.drop(columns=drop), expected.history.drop(columns=drop))


def test_sigkill_then_resume_gives_the_same_weights(tmp_path, uninterrupted):
    script = Path(__file__).parents[1] / "small_runs.py"
    process = subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.previous.pt").exists():  # the second checkpoint is in the middle of the run
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    state = load_checkpoint(tmp_path)
    assert state["epoch"] < 4
    result = killable(tmp_path)
    assert_same_run(result, uninterrupted)
    assert "resumed after epoch" in result.notes[-1]


class Death(BaseException):
    """The process ends here."""


def test_death_at_any_file_operation_then_resume(tmp_path, monkeypatch):
    uninterrupted = killable(epochs=2)
    moves = {"left": -1}
    replace, path_replace = os.replace, Path.replace

    def dying(move):
        def moved(*arguments):
            if moves["left"] == 0:
                raise Death
            moves["left"] -= 1
            return move(*arguments)

        return moved

    monkeypatch.setattr(os, "replace", dying(replace))
    monkeypatch.setattr(Path, "replace", dying(path_replace))
    died = 0
    for after in range(1, 40, 3):
        directory = tmp_path / str(after)
        moves["left"] = after
        try:
            killable(directory, epochs=2)
            break
        except Death:
            died += 1
        moves["left"] = -1
        assert_same_run(killable(directory, epochs=2), uninterrupted)
    assert died >= 8


def test_a_finished_run_is_not_repeated(tmp_path, uninterrupted):
    killable(tmp_path)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = killable(tmp_path)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before
    assert_same_run(again, uninterrupted)


def test_resume_false_starts_again(tmp_path):
    first = run(output_dir=tmp_path)
    second = run(output_dir=tmp_path, learning_rate=0.2, resume=False)
    assert not torch.equal(weights(first.student), weights(second.student))
    assert second.notes == ()


def flip_a_bit(path):
    """In a tensor: between the files of a zip archive lie bytes that are never read."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content = max((archive.read(name) for name in archive.namelist() if "/data/" in name), key=len)
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.write_bytes(path.read_bytes()[:1000])])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted, damage):
    killable(tmp_path)
    damage(tmp_path / "checkpoint.pt")
    with pytest.warns(
        UserWarning, match=r"checkpoint.pt \(.*\) is damaged; the run resumes from .*checkpoint.previous.pt"
    ):
        result = killable(tmp_path)
    assert_same_run(result, uninterrupted)


def test_all_checkpoints_damaged(tmp_path):
    run(output_dir=tmp_path)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"PK\3\4 nothing")
    with pytest.raises(CheckpointError, match=r"No checkpoint can be read: .*resume=False to start again"):
        run(output_dir=tmp_path)
    run(output_dir=tmp_path, resume=False)


def test_damaged_best_weights(tmp_path):
    run(output_dir=tmp_path)
    (tmp_path / "best.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"best weights .*best.safetensors cannot be read"):
        run(output_dir=tmp_path)


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    free = {"writes": 12}
    fsync = os.fsync

    def full(descriptor):
        free["writes"] -= 1
        if free["writes"] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("cka_probe.atomic_write.os.fsync", full)
    with pytest.raises(OSError, match=r"could not write .*: the disk is full\. .* is intact"):
        run(output_dir=tmp_path, epochs=6)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))  # no temporary files are left
    state = load_checkpoint(tmp_path)
    assert 0 < state["epoch"] < 6
    resumed = run(output_dir=tmp_path, epochs=6)
    assert torch.equal(weights(resumed.student), weights(run(epochs=6).student))


def test_other_settings_are_refused(tmp_path):
    run(output_dir=tmp_path, teacher=network(2), loss=Mimic())
    with pytest.raises(ValueError, match=r"learning_rate was 0.1 and is now 0.2; .*teacher_weights was"):
        run(output_dir=tmp_path, teacher=network(3), loss=Mimic(), learning_rate=0.2)
    with pytest.raises(ValueError, match=r"student_weights was \S+ and is now"):
        run(network(1, width=8), network(2), Mimic(), output_dir=tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["seed"] == 0


def test_weights_of_tied_parameters_and_metadata(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    save_weights(model.state_dict(), tmp_path / "w.safetensors", {"epoch": 3})
    loaded = load_file(tmp_path / "w.safetensors")
    assert torch.equal(loaded["b.weight"], model["a"].weight)


def test_checkpoint_without_files_and_between_renames(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"epoch": 1})
    save_checkpoint(tmp_path, {"epoch": 2})
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.incoming.pt")
    assert load_checkpoint(tmp_path) == {"epoch": 2}


def test_optimizer_of_ones_own_and_loader_resume(tmp_path, monkeypatch):
    from torch.utils.data import DataLoader

    def go(directory=None):
        train = DataLoader(images(), 8, shuffle=True, generator=torch.Generator().manual_seed(3))
        options = {
            "optimizer": torch.optim.AdamW,
            "train": train,
            "batch_size": None,
            "checkpoint_steps": 3,
            "epochs": 3,
        }
        return run(network(1, dropout=0.5), network(2), Mimic(), output_dir=directory, **options)

    def stop(*_):
        steps.append(1)
        if len(steps) > 13:
            raise KeyboardInterrupt

    steps = []
    expected = go()
    with monkeypatch.context() as patch:
        patch.setattr(student_loop, "average_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path)
    assert load_checkpoint(tmp_path)["step"] == 3
    result = go(tmp_path)
    np.testing.assert_array_equal(weights(result.student), weights(expected.student))
