"""The gathered batch: two gloo processes with different batch sizes give the loss and gradient of one process."""

import gc

import pytest
import torch
from gloo_threads import gloo_threads
from quick_processes import start_processes
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cka_probe.distill.baselines import CCLoss, DISTLoss, PKDLoss, RKDLoss, SPLoss
from cka_probe.distill.losses.cka import FeatureCKALoss, LogitCKALoss, RCKALoss
from cka_probe.distill.losses.contract import Outputs
from cka_probe.distill.losses.gather import batch_sizes, gather_batch, world_size
from cka_probe.distill.losses.signs import SignLoss

pytestmark = pytest.mark.slow

SHARES = (5, 4)
LOSSES = {
    "rcka": RCKALoss(),
    "unbiased": RCKALoss(1, 2, 3, estimator="unbiased", temperature=2.0),
    "released": RCKALoss(variant="released"),
    "fcka": FeatureCKALoss(),
    "lcka": LogitCKALoss(),
    "signs": SignLoss(3),
    "sp": SPLoss(10),
    "rkd": RKDLoss(1, 2),
    "cc": CCLoss(),
    "dist": DISTLoss(),
    "pkd": PKDLoss(),
}


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        feature = torch.tanh(self.body(x))
        return self.head(feature), feature


def whole():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(sum(SHARES), width, generator=generator) for width in (6, 5, 12)]


def gradient_of(network, loss, x, logits, feature):
    network.zero_grad()
    out, hidden = network(x)
    if isinstance(loss, PKDLoss):
        hidden, feature = (z[:, :8].unflatten(1, (2, 2, 2)) for z in (hidden, feature))
    value = loss(Outputs(out, (hidden,)), Outputs(logits, (feature,)))
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = results_of(rank)
    gc.collect()
    distributed.destroy_process_group()
    torch.save({**results, "threads": gloo_threads()}, f"{folder}/{rank}.pt")


def results_of(rank):
    start = sum(SHARES[:rank])
    share = [tensor[start : start + SHARES[rank]] for tensor in whole()]
    network = DistributedDataParallel(Student(), find_unused_parameters=True)
    results = {name: gradient_of(network, loss, *share) for name, loss in LOSSES.items()}
    results["alone"] = gradient_of(network, FeatureCKALoss(gather=False), *share)
    results["sizes"] = batch_sizes(*share)
    try:
        batch_sizes(share[0], torch.zeros(SHARES[rank], 3 + rank))
    except ValueError as error:
        results["error"] = str(error)
    results["gathered"] = gather_batch(share[0])
    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    start_processes(worker, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_give_the_loss_and_gradient_of_one(two, name):
    value, gradient = gradient_of(Student(), LOSSES[name], *whole())
    for rank in range(2):
        torch.testing.assert_close(two[rank][name][0], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(two[rank][name][1], gradient, rtol=1e-5, atol=1e-6)


def test_without_gathering_each_process_has_a_loss_of_its_own(two):
    _, gradient = gradient_of(Student(), FeatureCKALoss(), *whole())
    assert abs(two[0]["alone"][0] - two[1]["alone"][0]) > 1e-3
    assert float((two[0]["alone"][1] - gradient).norm() / gradient.norm()) > 0.1


def test_the_order_is_that_of_the_ranks(two):
    for rank in range(2):
        assert two[rank]["sizes"] == list(SHARES)
        torch.testing.assert_close(two[rank]["gathered"], whole()[0], rtol=0, atol=0)


def test_shapes_that_do_not_fit_are_an_error_in_every_process(two):
    for rank in range(2):
        assert "cannot gather tensor 1" in two[rank]["error"]
        assert "[(3,), (4,)]" in two[rank]["error"]


def test_one_process_keeps_its_own_tensor():
    x = torch.zeros(3, 2)
    assert world_size() == 1
    assert batch_sizes(x) == [3]
    assert gather_batch(x) is x


def test_nothing_of_the_group_outlives_it(two):
    assert [part["threads"] for part in two] == [[], []]
