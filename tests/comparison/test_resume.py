"""A resumed comparison has the bits of an uninterrupted one, or is refused by the name of what differs."""

import os
import random
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.distributed as dist
from quick_processes import free_port, start_processes
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.comparison import minibatch

NUMBERS = ("values", "standard_error", "p_value", "chance")


class Stopped:
    """Batches, the reading of one of which is interrupted."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __iter__(self):
        for index, batch in enumerate(self.batches):
            if index == self.at:
                raise KeyboardInterrupt
            yield batch


def network(seed, mean=0.0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        net[2].bias += mean
    return net


def batches(count=12, far=None):
    generator = torch.Generator().manual_seed(5)
    found = list(torch.randn(count, 20, 6, generator=generator))
    if far is not None:
        found[far][7] *= 1e12
    return found


def same(found, expected):
    for name in NUMBERS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or a.tobytes() == b.tobytes(), name
    assert found.notes == expected.notes
    assert found.meta == expected.meta


CASES = {
    "linear": ({}, {}),
    "biased": ({"estimator": "biased"}, {}),
    "rbf": ({"kernel": cp.RBF()}, {}),
    "cosine": ({"kernel": cp.Cosine()}, {}),
    "large means": ({}, {"mean": 100.0}),
    "means that need care": ({}, {"mean": 2.0}),
}


@pytest.mark.parametrize(("options", "kind"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("at", [2, 7, 11])
def test_bits(tmp_path, options, kind, at):
    def run(data, **more):
        return cp.compare(network(0, **kind), network(1), data, progress=False, **options, **more)

    path = tmp_path / "run.ckpt"
    assert run(Stopped(batches(), at), checkpoint=path).meta["partial"]
    same(run(batches(), checkpoint=path), run(batches()))
    assert not path.exists()


def test_notes_of_before_survive(tmp_path):
    path = tmp_path / "run.ckpt"
    nets = {"a": network(0), "b": network(1)}
    cp.compare_many(nets, Stopped(batches(far=1), 6), checkpoint=path, progress=False)
    resumed = cp.compare_many(nets, batches(far=1), checkpoint=path, progress=False)
    whole = cp.compare_many(nets, batches(far=1), progress=False)
    assert any("sample 7 of batch 1" in note for note in resumed.notes)
    same(resumed, whole)


def test_saved_every_few_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(minibatch, "CHECKPOINT_EVERY", 3)
    path = tmp_path / "run.ckpt"

    def failing(model, batch):
        failing.calls += 1
        if failing.calls == 22:
            raise ZeroDivisionError
        return model(batch)

    failing.calls = 0
    with pytest.raises(ZeroDivisionError):
        cp.compare(network(0), network(1), batches(), forward=failing, checkpoint=path, progress=False)
    found = cp.compare(network(0), network(1), batches(), forward=failing, checkpoint=path, progress=False)
    same(found, cp.compare(network(0), network(1), batches(), forward=lambda m, b: m(b), progress=False))


def changed():
    found = [batch.clone() for batch in batches()]
    found[3][11, 4] += 1e-4
    return found


def tilted(model, batch):
    return model(1.001 * batch)


REFUSED = {
    "weights": ("weights of model_x", {"x": lambda: network(7)}),
    "a bias": ("weights of model_y", {"y": lambda: network(1, mean=1e-5)}),
    "one number": ("made from other samples", {"data": changed}),
    "fewer batches": ("holds the first 7 batches, but the data ended after 5", {"data": lambda: batches()[:5]}),
    "kernel": ("kernel and estimator", {"kernel": cp.Cosine}),
    "estimator": ("kernel and estimator", {"estimator": lambda: "biased"}),
    "pooling": ("pooling", {"pooling": lambda: "mean"}),
    "pooling function": ("pooling", {"pooling": lambda: lambda x: x.flatten(1)}),
    "forward": ("forward", {"forward": lambda: tilted}),
    "layers": ("layers of model_x", {"layers": lambda: ["0", "4"]}),
    "autocast": ("autocast", {"autocast": lambda: torch.bfloat16}),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_another_ingredient_is_refused_by_name_and_the_file_is_unchanged(tmp_path, change):
    name, other = change
    path = tmp_path / "run.ckpt"
    cp.compare(network(0), network(1), Stopped(batches(), 8), checkpoint=path, progress=False)
    before = path.read_bytes()
    options = {key: make() for key, make in other.items()}
    x, y = options.pop("x", network(0)), options.pop("y", network(1))
    data = options.pop("data", batches())
    with pytest.raises(ValueError, match=name):
        cp.compare(x, y, data, checkpoint=path, progress=False, **options)
    assert path.read_bytes() == before


def test_data_that_end_before_the_checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"
    cp.compare(network(0), network(1), Stopped(batches(), 8), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="holds the first 7 batches, but the data ended after 5"):
        cp.compare(network(0), network(1), iter(batches()[:5]), checkpoint=path, progress=False)
    assert path.exists()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of POSIX")
def test_ctrl_c_at_random_moments(tmp_path):
    data = image_batches(40, size=16)
    nets = small_network(0), small_network(1)
    whole = cp.compare(*nets, data, progress=False)
    rng = random.Random(0)
    started = time.perf_counter()
    cp.compare(*nets, data, checkpoint=tmp_path / "first.ckpt", progress=False)
    seconds = time.perf_counter() - started
    stopped = 0
    for attempt in range(12):
        path = tmp_path / f"{attempt}.ckpt"
        timer = threading.Timer(
            rng.uniform(0.02, 0.9) * seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
        )
        timer.start()
        try:
            found = cp.compare(*nets, data, checkpoint=path, progress=False)
            stopped += found.meta["partial"]
            timer.cancel()
            timer.join()
        except KeyboardInterrupt:  # before the first batch was done, or after the last one
            stopped += 1
        with suppress(KeyboardInterrupt):
            time.sleep(0.01)
        resumed = cp.compare(*nets, data, checkpoint=path, progress=False)
        assert resumed.values.tobytes() == whole.values.tobytes()
        assert resumed.meta["samples"] == whole.meta["samples"]
    assert stopped >= 3


def rank_of_two(rank, port, folder, kind):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        x = network(rank if kind == "weights" else 0)
        kernel = cp.RBF() if kind == "kernel" and rank else cp.Linear()
        data = batches()[rank::2]
        if kind == "failure" and rank:
            data = [*data[:2], torch.full((20, 6), torch.nan)]
        cp.compare(x, network(1), data, kernel=kernel, distributed=True, progress=False)
        message = "no error"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    (folder / str(rank)).write_text(message)


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("weights", ["ValueError: The processes compare different things: weights of model_x"] * 2),
        ("kernel", ["ValueError: The processes compare different things: kernel and estimator"] * 2),
        (
            "failure",
            [
                "RuntimeError: The comparison was stopped because process 1 failed: CaptureError: Layer '0'",
                "CaptureError: Layer '0' of model_x (Sequential) gave NaN",
            ],
        ),
        ("none", ["no error"] * 2),
    ],
)
def test_processes_that_differ_or_fail_tell_each_other(tmp_path, kind, messages):
    started = time.monotonic()
    start_processes(rank_of_two, (free_port(), tmp_path, kind), 2)
    for rank, message in enumerate(messages):
        assert (tmp_path / str(rank)).read_text().startswith(message)
    assert time.monotonic() - started < 60


def test_numbers_of_a_checkpoint_are_exact(tmp_path):
    path = tmp_path / "run.ckpt"
    cp.compare(network(0), network(1), Stopped(batches(), 5), checkpoint=path, progress=False)
    with np.load(path) as archive:
        assert all(archive[name].dtype == np.float64 for name in archive.files if name.startswith("sum_"))
