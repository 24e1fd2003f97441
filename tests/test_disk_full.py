"""A disk that is full from any write on: the last good file stays, the error names the file, a later run goes on.

The disk is full at the level of the system: the raw writes of every file that the package opens, and every flush. From
the chosen operation on, all of them fail, as on a real disk.
"""

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import killable, network, weights
from torch.utils.data import TensorDataset

import cka_probe as cp
from cka_probe.cli.output import draw
from cka_probe.comparison import minibatch
from cka_probe.distill.dense import SmallResNet, distill_segmenter, segmenter
from cka_probe.distill.recipes.recipe import Recipe
from cka_probe.distill.recipes.tables import run_grid, save_table, summarise
from cka_probe.distill.training.checkpoints import load_checkpoint
from cka_probe.plotting.report import write_report

FULL = "the disk is full|No space left on device"


class Disk:
    """Counts the operations that need room, and refuses all of them after the first ``room``."""

    def __init__(self, folder):
        self.folder, self.room, self.used = folder, None, 0

    def use(self, *names):
        self.used += 1
        if self.room is not None and self.used > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)

    def during(self, room, job, *arguments):
        """Run a job with room for this number of operations; None: for all."""
        self.room, self.used = room, 0
        try:
            return job(*arguments)
        finally:
            self.room = None


@pytest.fixture
def disk(tmp_path, monkeypatch):
    made = Disk(tmp_path)

    class Raw(io.FileIO):
        def write(self, data):
            made.use()
            return super().write(data)

    fdopen, path_open, fsync, replace = os.fdopen, Path.open, os.fsync, os.replace

    def opened(target, mode="r", *arguments, **options):
        if mode == "wb":
            return io.BufferedWriter(Raw(target, mode))
        return (fdopen if isinstance(target, int) else path_open)(target, mode, *arguments, **options)

    def moved(source, target, **options):
        made.use(str(source), None, str(target))
        replace(source, target, **options)

    monkeypatch.setattr(os, "fdopen", opened)
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda descriptor: made.use() or fsync(descriptor))
    monkeypatch.setattr(os, "replace", moved)
    return made


def places(count, most):
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


READERS = {
    ".npz": lambda path: [np.load(path)[name] for name in np.load(path).files],
    ".npy": np.load,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".safetensors": load_file,
    ".csv": lambda path: path.read_text().strip() and pd.read_csv(path),
    ".json": lambda path: json.loads(path.read_text()),
    ".toml": lambda path: Recipe.load(path),
    ".md": Path.read_text,
    ".tex": Path.read_text,
    ".png": lambda path: Image.open(path).load(),
    ".html": lambda path: path.read_text().rstrip().endswith("</html>") or pytest.fail(f"{path} is cut off"),
}


def assert_all_files_can_be_read(folder):
    for path in folder.rglob("*"):
        assert not path.name.endswith(".tmp"), f"{path} stays behind"
        if path.is_file():
            READERS[path.suffix](path)


def assert_names_a_file(error, folder):
    assert error.errno == errno.ENOSPC
    assert str(folder) in str(error)


# Single files: one write over an older file.


def matrix(seed):
    values = np.random.default_rng(seed).uniform(size=(9, 9))
    return cp.SimilarityMatrix(values, tuple(f"layer{i}" for i in range(9)), tuple(f"layer{i}" for i in range(9)))


def signed(seed):
    torch.manual_seed(seed)
    batches = [torch.randn(8, 1, 6, 6) for _ in range(3)]
    return cp.signature(network(seed), batches, progress=False)


WRITERS = {
    "matrix.npz": lambda path, seed: matrix(seed).save(path),
    "matrix.csv": lambda path, seed: matrix(seed).to_csv(path),
    "report.html": lambda path, seed: write_report(matrix(seed), path),
    "picture.png": lambda path, seed: draw(matrix(seed), path, {}),
    "signature.npz": lambda path, seed: signed(seed).save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_intact_after_every_write_that_fails(disk, name):
    write = WRITERS[name]
    path = disk.folder / name
    write(path, 0)
    before = path.read_bytes()
    disk.during(None, write, disk.folder / f"other_{name}", 1)
    operations = disk.used
    assert operations >= 3
    (disk.folder / f"other_{name}").unlink()
    for room in places(operations - 1, 12):  # the last operation flushes the folder, after the rename
        with pytest.raises(OSError, match=r"could not write .*: the disk is full\. Free some space") as raised:
            disk.during(room, write, path, 1)
        assert_names_a_file(raised.value, path)
        assert path.read_bytes() == before
        assert os.listdir(disk.folder) == [name]  # noqa: PTH208
    disk.during(None, write, path, 1)
    assert path.read_bytes() != before


def test_a_table_of_a_recipe(disk):
    def write(folder, last):
        runs = pd.DataFrame({"recipe": "a", "method": ["kd", "kd"], "seed": [0, 1], "last": [last, 72.0], "best": 75.0})
        save_table(summarise(runs), runs, folder)

    folders = [disk.folder / name for name in ("old", "new", "table")]
    write(folders[0], 70.0)
    disk.during(None, write, folders[1], 71.0)
    operations = disk.used
    old, new = ({path.name: path.read_text() for path in folder.iterdir()} for folder in folders[:2])
    for room in range(operations - 1):
        write(folders[2], 70.0)
        with pytest.raises(OSError, match="the disk is full") as raised:
            disk.during(room, write, folders[2], 71.0)
        assert_names_a_file(raised.value, folders[2])
        found = {path.name: path.read_text() for path in folders[2].iterdir()}
        assert found.keys() == old.keys()
        assert all(text in (old[name], new[name]) for name, text in found.items())


# Runs: the same call again goes on, and ends with the bits of a run on a disk with room.


def compare(folder):
    batches = [torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(7)]
    result = cp.compare(network(1), network(2), batches, checkpoint=folder / "state.npz", progress=False)
    return torch.tensor(result.values.tolist())


def distilled(folder):
    return weights(killable(folder, epochs=2).student)


def cached(folder):
    from small_runs import Mimic, images, run

    options = {"student_layers": ["norm"], "teacher_cache": folder / "cache", "output_dir": folder / "run"}
    return weights(run(network(1), network(2), Mimic(), train=images(), epochs=1, **options).student)


def segmented(folder):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.randint(0, 3, (6, 32, 32)))
    student = segmenter("lraspp", SmallResNet(4), 3)
    options = {"steps": 5, "batch_size": 2, "log_every": 2, "score_every": 2, "checkpoint_steps": 1, "progress": False}
    result = distill_segmenter(None, student, data, data, output_dir=folder, **options)
    best = torch.cat([value.flatten().double() for _, value in sorted(result.best_state.items())])
    scores = torch.tensor(result.history["test_mIoU"].tolist())
    return torch.cat([weights(student), best, scores.nan_to_num()])


RUNS = {"compare": compare, "distill": distilled, "teacher cache": cached, "segmenter": segmented}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_after_the_disk_was_full(disk, monkeypatch, name):
    monkeypatch.setattr(minibatch, "CHECKPOINT_EVERY", 2)
    job = RUNS[name]
    whole = disk.folder / "whole"
    whole.mkdir()
    expected = disk.during(None, job, whole)
    operations = disk.used
    assert operations >= 10
    failed = 0
    for room in places(operations, 9):
        folder = disk.folder / str(room)
        folder.mkdir()
        with pytest.raises(OSError, match=FULL) as raised:
            disk.during(room, job, folder)
        assert_names_a_file(raised.value, folder)
        assert_all_files_can_be_read(folder)
        failed += 1
        assert torch.equal(job(folder), expected)
    assert failed >= 9


RECIPE = """
[teacher]
model = "resnet8"
[teacher.train]
epochs = 1
batch_size = 32
[student]
model = "resnet8"
[data]
name = "digits"
size = 8
train_per_class = 4
[train]
epochs = 1
batch_size = 20
[output]
teacher_cache = true
"""


@pytest.mark.slow
def test_a_grid_of_recipes_goes_on_after_the_disk_was_full(disk):
    def grid(folder):
        (folder / "small.toml").write_text(RECIPE)
        recipe = Recipe.load(folder / "small.toml", [f'output.directory="{folder / "runs"}"'])
        table = run_grid([recipe], ["ce", "kd"], [0], progress=False)
        return table["last"].tolist()

    whole = disk.folder / "whole"
    whole.mkdir()
    expected = disk.during(None, grid, whole)
    operations = disk.used
    for room in places(operations, 4):
        folder = disk.folder / str(room)
        folder.mkdir()
        with pytest.raises(OSError, match=FULL) as raised:
            disk.during(room, grid, folder)
        assert_names_a_file(raised.value, folder)
        assert_all_files_can_be_read(folder)
        assert grid(folder) == expected


def test_the_checkpoint_before_the_failure_is_the_one_that_is_loaded(disk):
    disk.during(None, distilled, disk.folder / "whole")
    room = disk.used * 2 // 3
    with pytest.raises(OSError, match=FULL):
        disk.during(room, distilled, disk.folder / "run")
    state = load_checkpoint(disk.folder / "run")
    assert 0 < state["epoch"] * 5 + state["step"] < 10
