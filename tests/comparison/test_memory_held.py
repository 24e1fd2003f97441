"""compare(scope="dataset", memory=...) adds at most so much to the memory of its process, on each route."""

import json
import resource
import sys

import pytest
import torch
from quick_processes import start_processes
from torch import nn

import cka_probe as cp

SAMPLES, SIDE, BLOCKS, CHANNELS = 64, 32, 8, 64
NARROW = 2048
CASES = {
    "grams": (256, {"route": "grams"}),
    "disk": (256, {"route": "disk"}),
    "another kernel": (384, {"route": "grams", "kernel": cp.RBF(1.0)}),
    "moments": (96, {"route": "moments", "pooling": "mean"}),
    "blocks": (320, {"route": "blocks", "layers": ["1", "2", "3"]}),
}
"""MiB of memory, and options. 16 layers of 65,536 columns are 256 MiB of features; moments take 2,048 small images."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the largest memory is in other units elsewhere")


def network():
    layers = [nn.Conv2d(3, CHANNELS, 1)]
    for _ in range(BLOCKS):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 1, groups=CHANNELS), nn.Hardtanh(-2, 2)]
    return nn.Sequential(*layers).eval()


def largest():
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def worker(_rank, case, folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, (limit, options) = network(), CASES[case]
    data = torch.randn(SAMPLES, 3, SIDE, SIDE).split(16)
    if "pooling" in options:
        data = torch.randn(NARROW, 3, 4, 4).split(128)
    options = {"layers": [str(i) for i in range(1, 2 * BLOCKS + 1)], "progress": False, **options}
    few = [batch[:8, :, :4, :4] for batch in data[:2]]
    cp.compare(net, net, few, scope="dataset", **{**options, "layers": ["1", "2"]})  # imports what it needs
    before = largest()
    found = cp.compare(net, net, data, scope="dataset", memory=f"{limit}MiB", **options)
    told = {"added": largest() - before, "route": found.meta["route"], "passes": found.meta["passes"]}
    (folder / f"{case}.json").write_text(json.dumps(told))


@pytest.mark.parametrize("case", CASES)
def test_the_process_grows_by_no_more_than_the_memory_that_was_given(case, tmp_path):
    start_processes(worker, (case, tmp_path), 1)
    told = json.loads((tmp_path / f"{case}.json").read_text())
    limit, options = CASES[case]
    assert told["route"] == options["route"]
    assert told["added"] <= limit
    assert (told["passes"] > 1) == (case in ("grams", "another kernel"))
