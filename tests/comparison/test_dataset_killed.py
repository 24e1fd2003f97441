"""compare(scope="dataset", checkpoint=...), killed by SIGKILL several times, at last gives the uninterrupted bits.

A process forks one child for each run. The child kills itself at one of the moments at which a file or the state is
half-done: a batch, a write of features, a Gram matrix, each step of writing and removing the checkpoint.
"""

import json
import os
import signal

import numpy as np
import pytest
import torch
from quick_processes import start_processes
from small_networks import image_batches, small_network

import cka_probe as cp
from cka_probe import atomic_write
from cka_probe.comparison import dataset_checkpoint, feature_blocks, gram_pass, held
from cka_probe.comparison.checkpoint import Checkpoint
from cka_probe.comparison.memory import ForwardMeter
from cka_probe.estimators.dataset import layer_parts

DATA = image_batches(9)
SMALL = "2200KiB"
FEW = {"layers": ["2", "4"]}
CASES = {
    "moments": (
        {"route": "moments", "outputs": True},
        ["5 batch", "1 before _fill", "1 after _fill", "1 before unlink"],
    ),
    "grams": ({**FEW, "route": "grams"}, ["3 before write", "5 batch", "1 before replace", "2 before whole_gram"]),
    "passes": (
        {"layers": ["1", "4"], "route": "grams", "memory": SMALL},
        ["1 before whole_gram", "1 before replace", "15 batch", "1 after replace", "5 batch"],
    ),
    "disk": ({**FEW, "route": "disk", "kernel": cp.RBF()}, ["9 after write", "1 after replace", "1 before unlink"]),
    "blocks": ({**FEW, "route": "blocks"}, ["15 before write", "1 after unlink"]),
    "sketch": ({**FEW, "route": "sketch", "kernel": cp.RBF(), "memory": "110MiB"}, ["1 before replace", "6 batch"]),
    "one batch": ({"one": True}, ["1 after write", "2 before whole_gram"]),
    "procrustes": ({**FEW, "measure": "procrustes"}, ["12 before write", "1 before replace"]),
}
"""The options of each comparison, and the moment at which each of its runs but the last is killed."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork and SIGKILL")


class Moments:
    """Counts the moments of this process, and kills it at one of them, such as "2 before replace"."""

    def __init__(self, last):
        self.last, self.seen = last, {}
        self.around(atomic_write.os, "replace")
        self.around(atomic_write, "_fill")
        self.around(feature_blocks.FeatureFile, "write")
        self.around(gram_pass, "whole_gram")
        self.around(dataset_checkpoint.Path, "unlink")

    def pass_by(self, name):
        self.seen[name] = self.seen.get(name, 0) + 1
        if f"{self.seen[name]} {name}" == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, attribute):
        function = getattr(owner, attribute)

        def counted(*args, **options):
            self.pass_by(f"before {attribute}")
            found = function(*args, **options)
            self.pass_by(f"after {attribute}")
            return found

        setattr(owner, attribute, counted)


class Batches:
    """Batches that can be read again, each a moment."""

    def __init__(self, moments, batches):
        self.moments, self.batches = moments, batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.moments is not None:
                self.moments.pass_by("batch")
            yield batch


def compared(options, path, moments=None):
    options = dict(options)
    data = [torch.cat(DATA)] if options.pop("one", False) else DATA
    widths = (100, 120) if options.get("memory") == SMALL else (6, 6)
    nets = [small_network(seed, width=width) for seed, width in enumerate(widths)]
    options = {"scope": "dataset", "memory": "1GiB", "progress": False, "checkpoint": path, **options}
    return cp.compare(*nets, Batches(moments, data), **options)


def run(options, path, last):
    """The exit status of a child that compares. It leaves its result and its moments beside the checkpoint."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            moments = Moments(last)
            found = compared(options, path, moments)
            path.with_name("seen.json").write_text(json.dumps(moments.seen))
            found.save(path.with_name("found.npz"))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_all(_rank, folder):
    """Every case without and with kills, by the small sizes that let little data take every way."""
    torch.set_num_threads(1)
    ForwardMeter._used = lambda _: None
    layer_parts.PART = held.SLAB = 4000
    feature_blocks.PANEL = 64
    dataset_checkpoint.CHECKPOINT_EVERY = 2
    for case, (options, deaths) in CASES.items():
        (folder / case).mkdir()
        path, codes, left = folder / case / "run.ckpt", [], []
        compared(options, path).save(path.with_name("whole.npz"))
        for last in (*deaths, None):
            codes.append(run(options, path, last))
            if path.exists():
                Checkpoint.load(path, torch.device("cpu"))  # raises an error unless it is whole
            left.append(path.exists())
        (folder / case / "told.json").write_text(json.dumps([codes, left]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    start_processes(run_all, (folder,), 1)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_killed_runs_go_on_to_the_uninterrupted_bits(case, folder):
    codes, left = json.loads((folder / case / "told.json").read_text())
    deaths = CASES[case][1]
    assert codes == [-signal.SIGKILL] * len(deaths) + [0]
    assert any(left) == (case != "one batch")  # whose one batch is all there is to do
    assert {path.name for path in (folder / case).iterdir()} == {"found.npz", "seen.json", "told.json", "whole.npz"}
    found, whole = (cp.SimilarityMatrix.load(folder / case / f"{name}.npz") for name in ("found", "whole"))
    for name in ("values", "standard_error", "p_value", "chance"):
        if getattr(whole, name) is not None:
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert (found.notes, found.meta) == (whole.notes, whole.meta)
    seen = json.loads((folder / case / "seen.json").read_text())
    if left[-2]:  # something was saved, and is not done again
        assert seen.get("before replace", 0) < (2 if case == "passes" else 4)
