"""A network larger than the memory: accelerate's cpu_offload and disk_offload load each layer's weights as it runs."""

import copy

import torch
from situation import check, check_notes, needs
from torch import nn

import cka_probe as cp


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3))


def test_weights_that_wait_in_memory_or_on_disk(tmp_path):
    accelerate = needs("accelerate", "distill")
    base, batches = network(), [torch.randn(8, 6) for _ in range(2)]
    in_memory = accelerate.cpu_offload(copy.deepcopy(base), execution_device="cpu")
    on_disk = accelerate.disk_offload(copy.deepcopy(base), str(tmp_path / "weights"), execution_device="cpu")
    for offloaded in (in_memory, on_disk):
        assert next(offloaded.parameters()).device.type == "meta"
        result = cp.compare(base, offloaded, batches, progress=False)
        check(result, base, batches, copy.deepcopy(base))
        check_notes(result)
        assert next(offloaded.parameters()).device.type == "meta"


def test_layers_dispatched_to_several_places():
    accelerate = needs("accelerate", "distill")
    base, batches = network(), [torch.randn(8, 6) for _ in range(2)]
    places = {"0": "cpu", "1": "cpu", "2": "cpu", "3": "cpu"}
    dispatched = accelerate.dispatch_model(copy.deepcopy(base), places, main_device="cpu", force_hooks=True)
    result = cp.compare(base, dispatched, batches, progress=False)
    check(result, base, batches, copy.deepcopy(base))
    check_notes(result)
