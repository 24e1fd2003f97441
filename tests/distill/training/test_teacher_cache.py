"""The cache of the teacher's outputs does not change a run, and is refused where it would be wrong."""

import errno
import os
import shutil
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import Mimic, Noisy, images, network, run, weights
from torch.utils.data import DataLoader, TensorDataset

from cka_probe.distill.training import teacher_cache


def go(**kwargs):
    return run(network(1), **{"teacher": network(2), "loss": Mimic(), "student_layers": ["norm"], **kwargs})


def test_same_run_with_and_without(tmp_path):
    without = go()
    teacher = network(2)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        cached = go(teacher=teacher, teacher_cache=tmp_path, accumulation_steps=2, accumulation="mean")
        calls_of_the_second = len(calls)
        calls.clear()
        expected = go(accumulation_steps=2, accumulation="mean")
        np.testing.assert_allclose(weights(cached.student), weights(expected.student), atol=1e-6)
    # The sample for the checks before the run, and three batches of test data for its own score.
    assert calls_of_the_second == 4
    cached = go(teacher_cache=tmp_path)
    np.testing.assert_allclose(weights(cached.student), weights(without.student), atol=1e-6)
    columns = ["train_loss", "logits", "features", "test_accuracy"]
    pd.testing.assert_frame_equal(cached.history[columns], without.history[columns], rtol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_teachers_layers_and_data_have_other_files(tmp_path):
    go(teacher_cache=tmp_path)
    go(teacher_cache=tmp_path, teacher=network(3))
    go(teacher_cache=tmp_path, student_layers=["stem"])
    go(teacher_cache=tmp_path, train=images(40, seed=7))
    go(teacher_cache=tmp_path, mixed_precision="bf16")
    assert len(list(tmp_path.iterdir())) == 5


def test_data_that_the_cache_would_falsify(tmp_path):
    with pytest.raises(ValueError, match="without augmentation, but `train` gives a different sample"):
        go(teacher_cache=tmp_path, train=Noisy(images()))
    with pytest.raises(ValueError, match="needs `train` as a data set"):
        go(teacher_cache=tmp_path, train=DataLoader(images(), 8), batch_size=None)
    with pytest.raises(ValueError, match="loss is None"):
        go(teacher_cache=tmp_path, loss=None)


def test_no_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    with pytest.raises(OSError, match=r"the teacher's outputs take 0.0 GB and .* has 0.0 GB free"):
        go(teacher_cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_interrupted_writing_leaves_nothing(tmp_path):
    class Stopping(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if self.reads > 60:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    x, y = images().tensors
    with pytest.raises(KeyboardInterrupt):
        go(teacher_cache=tmp_path, train=Stopping(x, y))
    assert not list(tmp_path.iterdir())
    assert torch.equal(x, images().tensors[0])


def test_one_changed_sample_has_its_own_files(tmp_path):
    go(teacher_cache=tmp_path)
    for place in (1, 23, 39):
        x, y = (tensor.clone() for tensor in images().tensors)
        x[place, 0, 2, 3] += 1e-3
        cached = go(teacher_cache=tmp_path, train=TensorDataset(x, y))
        np.testing.assert_allclose(weights(cached.student), weights(go(train=TensorDataset(x, y)).student), atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fills_or_fails_while_the_files_are_written(tmp_path, monkeypatch, error):
    def full(_descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("cka_probe.distill.training.teacher_cache.os.fsync", full)
    with pytest.raises(
        OSError, match=r"could not write the teacher's outputs to .*: .*" + os.strerror(error)
    ) as raised:
        go(teacher_cache=tmp_path)
    assert raised.value.errno == error
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_cut_off_is_named(tmp_path):
    go(teacher_cache=tmp_path)
    (file,) = tmp_path.rglob("feature_0.npy")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"feature_0.npy are damaged .* Delete the folder"):
        go(teacher_cache=tmp_path)


def test_the_main_process_gives_signs_while_the_others_wait(monkeypatch):
    sent = []
    monkeypatch.setattr(teacher_cache, "SIGN_EVERY", 0.0)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda words: sent.append(words) or words)
    main = SimpleNamespace(is_main_process=True)
    assert teacher_cache._by_main_process(main, lambda at_work: [at_work() for _ in range(3)] and "digest") == "digest"
    assert len(sent) == 4
    words = iter(sent)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda _: next(words))
    other = SimpleNamespace(is_main_process=False)
    assert teacher_cache._by_main_process(other, lambda _: pytest.fail("only the main process works")) == "digest"
    assert next(words, None) is None
