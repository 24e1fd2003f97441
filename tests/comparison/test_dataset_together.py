"""scope="dataset" in two processes gives the result of one process, on each route that they share."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from quick_processes import free_port, start_processes
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.comparison import feature_blocks, held
from cka_probe.comparison.memory import ForwardMeter
from cka_probe.estimators.dataset import layer_parts

BATCHES = [*image_batches(5), *image_batches(1, size=7, seed=1)]
LAYERS = ["0", "1", "2", "4"]


class Sometimes(nn.Sequential):
    """A network of which one layer does not run in the batch of 7 samples."""

    def forward(self, x):
        for number, layer in enumerate(self):
            x = x if number == 1 and len(x) == 7 else layer(x)
        return x


def wide():
    return small_network(0, width=400), small_network(1, width=480)


def narrow():
    return small_network(0), small_network(1)


def alone():
    return (small_network(0),) * 2


def partly():
    return Sometimes(*small_network(0)), small_network(1)


CASES = {
    "moments": (narrow, {"route": "moments", "outputs": True}),
    "more samples than the error keeps": (narrow, {"route": "moments", "layers": ["2", "4"]}),
    "grams": (narrow, {"route": "grams"}),
    "biased": (narrow, {"route": "grams", "estimator": "biased"}),
    "passes": (wide, {"route": "grams", "layers": LAYERS, "memory": "6MiB"}),
    "disk": (narrow, {"route": "disk", "memory": "2MiB", "kernel": cp.RBF()}),
    "chosen": (narrow, {}),
    "without data": (narrow, {"route": "moments"}),
    "grams without data": (narrow, {"route": "grams"}),
    "left out": (partly, {"route": "grams"}),
    "blocks": (narrow, {"route": "blocks"}),
    "blocks of another kernel": (narrow, {"route": "blocks", "kernel": cp.RBF(), "layers": ["2", "4"]}),
    "sketch": (narrow, {"route": "sketch", "layers": ["2", "4"], "memory": "110MiB"}),
    "sketch of another kernel": (narrow, {"route": "sketch", "kernel": cp.RBF(), "layers": "4", "memory": "110MiB"}),
    "sketch without data": (narrow, {"route": "sketch", "layers": "4"}),
    "procrustes": (narrow, {"measure": "procrustes"}),
    "counted": (narrow, {"measure": "mutual_knn", "k": 5, "permutations": 19, "layers": ["2", "4"]}),
    "one network": (alone, {"measure": "rsa"}),
    "measure without data": (narrow, {"measure": "cca", "layers": "4"}),
    "a layer that is left out": (partly, {"measure": "rsa"}),
    "a far sample": (narrow, {"route": "moments"}),
}


def batches_of(case):
    if case == "more samples than the error keeps":
        return image_batches(7, size=90)
    if case == "a far sample":
        return [1e4 * batch if i == 5 else batch for i, batch in enumerate(BATCHES)]
    return BATCHES


def small_parts():
    ForwardMeter._used = lambda _: None
    layer_parts.PART = held.SLAB = 4000
    feature_blocks.PANEL = 64


def compared(case, data, **more):
    make, options = CASES[case]
    return cp.compare(*make(), data, scope="dataset", progress=False, **options, **more)


def worker(rank, port, folder):
    torch.set_num_threads(1)
    small_parts()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for case in CASES:
            data = cp.Shard(batches_of(case))
            if "without data" in case:
                data = BATCHES if rank else []
            compared(case, data, distributed=True).save(folder / f"{case}{rank}.npz")
        said = []
        for layers, route in (
            (LAYERS[rank:], "grams"),
            (LAYERS, "moments"),
            (["0", "no such layer"][: rank + 1], None),
        ):
            try:
                data = cp.Shard(BATCHES)
                options = {"layers": layers, "route": route, "kernel": cp.Cosine(), "progress": False}
                cp.compare(*narrow(), data, scope="dataset", distributed=True, **options)
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        (folder / f"said{rank}").write_text("\n".join(said))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    start_processes(worker, (free_port(), folder), 2)
    return folder


@pytest.fixture(autouse=True)
def same_parts(monkeypatch):
    monkeypatch.setattr(ForwardMeter, "_used", lambda _: None)
    monkeypatch.setattr(layer_parts, "PART", 4000)
    monkeypatch.setattr(held, "SLAB", 4000)
    monkeypatch.setattr(feature_blocks, "PANEL", 64)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_result_of_one(case, folder):
    alone = compared(case, batches_of(case))
    for rank in range(2):
        found = cp.SimilarityMatrix.load(folder / f"{case}{rank}.npz")
        assert (found.rows, found.columns) == (alone.rows, alone.columns)
        for name in ("values", "standard_error", "p_value", "chance"):
            mine, expected = getattr(found, name), getattr(alone, name)
            if expected is not None:
                np.testing.assert_allclose(mine, expected, atol=1e-10, rtol=0)
        for key in ("route", "samples", "batches", "degrees_of_freedom"):
            assert found.meta.get(key) == alone.meta.get(key)
        assert found.meta.get("answers") == pytest.approx(alone.meta.get("answers"))
        if case == "passes":
            assert found.meta["passes"] > 3
        else:
            told = [note.partition("process 1: ")[2] or note for note in found.notes]
            assert [note for note in told if "route" not in note] == [n for n in alone.notes if "route" not in n]


def test_errors_are_the_same_in_all(folder):
    first, second = ((folder / f"said{rank}").read_text().splitlines() for rank in range(2))
    assert first[:2] == second[:2]
    assert "ValueError: The processes compare different things: layers of model_x" in first[0]
    assert "ValueError: route='moments' cannot be taken: the kernel is not linear" in first[1]
    assert "RuntimeError: The comparison was stopped because process 1 failed" in first[2]
    assert "no layer 'no such layer'" in second[2]


def test_what_runs_in_one_process_only_is_refused(monkeypatch):
    monkeypatch.setattr("cka_probe.comparison.request.check_process_group", lambda: None)
    with pytest.raises(ValueError, match="in several processes has no checkpoint"):
        compared("grams", BATCHES, distributed=True, checkpoint="run.ckpt")
