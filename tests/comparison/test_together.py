"""Several processes that compare together: their files, and how one that fails, dies or is stopped ends the others."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from quick_processes import free_port, start_processes
from small_networks import image_batches, small_network

import cka_probe as cp
from cka_probe.comparison import minibatch
from cka_probe.comparison.together import Together, path_of_rank

NUMBERS = ("values", "standard_error", "p_value")


class Slow:
    """Batches, each a twentieth of a second after the one before; ``at`` some batch something happens."""

    def __init__(self, batches, at=None, happens=None):
        self.batches, self.at, self.happens = batches, at, happens

    def __iter__(self):
        for index, batch in enumerate(self.batches):
            time.sleep(0.05)
            if index == self.at:
                self.happens()
            yield batch


def fail():
    raise OSError("the disk is gone")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def press():
    signal.raise_signal(signal.SIGINT)


HAPPENS = {"fail": fail, "die": die, "press": press}


def rank_of_several(rank, world, port, folder, kind):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    minibatch.CHECKPOINT_EVERY = 2
    started, message = time.monotonic(), "no error"
    nets, options = (small_network(0), small_network(1)), {}
    data = image_batches(13 * world)[rank::world]
    last = rank == world - 1
    if kind in HAPPENS:
        data = Slow(image_batches(400)[rank::world] if not last else data, 7 if last else None, HAPPENS[kind])
    elif kind == "layers" and last:
        options["layers"] = "no such layer"
    elif kind == "killed":
        data = Slow(data, 7, die)
    if kind in ("killed", "resumed", "press"):
        options["checkpoint"] = folder / "run.npz"
    try:
        result = cp.compare(*nets, data, distributed=True, progress=False, **options)
        result.save(folder / f"{kind}{rank}.npz")
        message = f"partial={result.meta['partial']}"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    (folder / f"{kind}{rank}").write_text(f"{time.monotonic() - started} {message}")
    dist.destroy_process_group()


def run(folder, kind, world=2):
    """What each process says at its end, and after how many seconds. A dead one says nothing."""
    context = start_processes(rank_of_several, (world, free_port(), folder, kind), world, join=False)
    for process in context.processes:
        process.join(timeout=90)
        assert process.exitcode is not None, "a process hangs"
    said = [(folder / f"{kind}{rank}").read_text().split(" ", 1) for rank in range(world)
            if (folder / f"{kind}{rank}").exists()]  # fmt: skip
    return [(float(seconds), message) for seconds, message in said]


def test_a_process_that_fails_in_the_middle_ends_the_others_within_seconds(tmp_path):
    (waited, other), (_, own) = run(tmp_path, "fail")
    assert own == "OSError: the disk is gone"
    assert other == "RuntimeError: The comparison was stopped because process 1 failed: OSError: the disk is gone"
    assert waited < 6  # its own batches take 10 seconds


def test_a_process_that_fails_before_its_first_batch_ends_the_others(tmp_path):
    found = [message for _, message in run(tmp_path, "layers", world=3)]
    error = "NoLayerError: Sequential has no layer 'no such layer'"
    assert found[2].startswith(error)
    assert all(f"stopped because process 2 failed: {error}" in message for message in found[:2])


def test_a_process_that_dies_ends_the_others(tmp_path):
    [(_, message)] = run(tmp_path, "die")
    assert message.startswith("RuntimeError: A process of the comparison has ended, or cannot be reached")


def test_ctrl_c_in_one_process_stops_all_with_a_partial_result(tmp_path):
    found = run(tmp_path, "press")
    assert [message for _, message in found] == ["partial=True"] * 2
    results = [cp.SimilarityMatrix.load(tmp_path / f"press{rank}.npz") for rank in range(2)]
    assert results[0].values.tobytes() == results[1].values.tobytes()
    assert results[0].notes == results[1].notes
    assert any("stopped by the user after" in note for note in results[0].notes)  # one if both had as many batches
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run.rank0.npz", "run.rank1.npz"]


def test_killed_processes_are_resumed_to_the_same_bits(tmp_path):
    assert all("has ended" in message for _, message in run(tmp_path, "killed"))  # the later one may see it
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run.rank0.npz", "run.rank1.npz"]
    before = {path: path.read_bytes() for path in tmp_path.glob("run*")}
    for _, message in run(tmp_path, "resumed", world=3):
        assert "number of processes was '2' and is now '3'" in message
    assert before == {path: path.read_bytes() for path in tmp_path.glob("run*")}
    assert [message for _, message in run(tmp_path, "resumed")] == ["partial=False"] * 2
    assert not list(tmp_path.glob("run*"))
    assert [message for _, message in run(tmp_path, "whole")] == ["partial=False"] * 2
    for rank in range(2):
        found, expected = (cp.SimilarityMatrix.load(tmp_path / f"{kind}{rank}.npz") for kind in ("resumed", "whole"))
        assert all(getattr(found, name).tobytes() == getattr(expected, name).tobytes() for name in NUMBERS)
        assert (found.notes, found.meta) == (expected.notes, expected.meta)


def test_one_process_has_nobody_to_meet():
    with Together(distributed=False) as together:
        together.start({"kernel": "Linear()"})
        together.look()
        together.stop()
        assert together.end(interrupted=True, notes=["a"]) == (True, ["a"])
    assert path_of_rank(Path("a/run.npz"), together) == Path("a/run.npz")
    with pytest.raises(KeyError, match="own"), Together(distributed=False):
        raise KeyError("own")
