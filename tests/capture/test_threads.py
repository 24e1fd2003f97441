"""Comparisons in several threads: one at a time for each network, others side by side, shared state is as before."""

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp
from cka_probe.capture.state import borrowed, full_precision, reduces_products
from cka_probe.capture.threads import exclusive


def network(seed, width=24, depth=4):
    torch.manual_seed(seed)
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU(inplace=True))))


def batches(count=6, width=24):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(32, width, generator=generator) for _ in range(count)]


def in_threads(jobs):
    """Results of the jobs, all started at once; an exception of a job is raised here."""
    gate = threading.Barrier(len(jobs))

    def start(job):
        gate.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(start, job) for job in jobs]]


@pytest.fixture(autouse=True)
def quick_switches():
    """Let threads change places often, as on a busy machine."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_comparisons_of_the_same_models_in_many_threads_give_the_reference():
    x, y, data = network(0), network(1), batches()
    x.train()
    xs, ys = ([cloned(net, batch) for batch in data] for net in (x, y))
    jobs = [lambda: cp.compare(x, y, data, progress=False), lambda: cp.compare(y, x, data, progress=False)] * 6
    for index, result in enumerate(in_threads(jobs)):
        expected = reference_cka(xs, ys) if index % 2 == 0 else reference_cka(ys, xs)
        np.testing.assert_allclose(result.values, expected, atol=1e-6)
    assert all(module.training for module in x.modules())
    assert not any(len(module._forward_hooks) for module in [*x.modules(), *y.modules()])


def test_a_network_and_a_part_of_it_in_two_threads():
    whole, data = network(0), batches()
    part = whole[:4]
    right = [cp.compare(net, net, data, progress=False).values for net in (whole, part)]
    jobs = [
        lambda: cp.compare(whole, whole, data, progress=False).values,
        lambda: cp.compare(part, part, data, progress=False).values,
    ] * 4
    for index, values in enumerate(in_threads(jobs)):
        assert np.array_equal(values, right[index % 2])


def test_extract_and_signature_in_threads():
    net, data = network(0), batches()
    features = cp.extract(net, data, progress=False)
    one = cp.signature(net, data, progress=False)
    jobs = [lambda: cp.extract(net, data, progress=False), lambda: cp.signature(net, data, progress=False)] * 4
    for index, found in enumerate(in_threads(jobs)):
        if index % 2:
            assert all(np.array_equal(a, b) for a, b in zip(found.grams, one.grams, strict=True))
        else:
            assert all(torch.equal(found[name], features[name]) for name in features)


def test_a_thread_that_only_runs_the_network_does_not_disturb_a_comparison():
    net, data = network(0), batches()
    net.eval()
    right = cp.compare(net, net, data, progress=False).values
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            net(torch.randn(7, 24))

    server = threading.Thread(target=serve)
    server.start()
    try:
        found = [cp.compare(net, net, data, progress=False).values for _ in range(5)]
    finally:
        stop.set()
        server.join()
    assert all(np.array_equal(values, right) for values in found)


def test_probes_of_one_network_in_several_threads_record_their_own_forwards():
    net = network(0).eval()
    inputs = [torch.randn(5 + seed, 24) for seed in range(6)]

    def probed(x):
        found = []
        for _ in range(10):
            with cp.Probe(net) as probe, torch.no_grad():
                net(x)
            found.append(probe.features)
        return found

    for x, found in zip(inputs, in_threads([partial(probed, x) for x in inputs]), strict=True):
        right = cloned(net, x)
        for features in found:
            assert list(features) == list(right)
            assert all(np.allclose(features[name], right[name], atol=1e-6) for name in right)


def test_other_models_run_at_the_same_time():
    """Each comparison waits until both are in their forward: with one lock for all this would never end."""
    both = threading.Barrier(2, timeout=30)

    class Waits(nn.Module):
        def forward(self, x):
            both.wait()
            return x

    nets = [nn.Sequential(nn.Linear(24, 3), Waits()) for _ in range(2)]
    jobs = [partial(cp.extract, net, batches(2), progress=False) for net in nets]
    assert len(in_threads(jobs)) == 2


def test_blocks_of_one_thread_nest():
    net = network(0)
    with exclusive([net]), exclusive([net, net[0]]), exclusive([net[0]]):
        pass
    with exclusive([net]):
        assert not in_threads([lambda: threading.get_ident() == 0])[0]


def test_two_threads_that_wait_for_each_other_get_an_error():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    both = threading.Barrier(2)

    def nested(first, second):
        with exclusive([first]):
            both.wait()
            try:
                with exclusive([second]):
                    return "ran"
            except RuntimeError as error:
                return str(error)

    found = in_threads([lambda: nested(a, b), lambda: nested(b, a)])
    assert "ran" in found
    assert any("Two threads wait for each other's networks" in text for text in found)


def test_a_thread_that_ended_inside_a_block_holds_nothing():
    net = nn.Linear(2, 2)
    blocks = []

    def enter():
        blocks.append(exclusive([net]))
        blocks[0].__enter__()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    with exclusive([net]):
        pass


# --- state of the whole process -----------------------------------------------------------------------------------


def test_random_generators_are_as_before_after_comparisons_of_different_models_in_threads():
    """A DataLoader draws from the global generator at its start, so one comparison is inside the other's draws."""
    torch.manual_seed(3)
    random.seed(3)
    expected, expected_python = torch.get_rng_state(), random.getstate()

    def job(seed):
        net = nn.Sequential(nn.Linear(24, 24), nn.Dropout())
        loader = DataLoader(torch.cat(batches()), batch_size=16, shuffle=True)
        return lambda: cp.compare(net, net, loader, progress=False)

    jobs = [job(seed) for seed in range(6)]
    torch.set_rng_state(expected)
    for _ in range(3):
        in_threads(jobs)
        assert torch.equal(torch.get_rng_state(), expected)
        assert random.getstate() == expected_python


def test_the_compiler_is_eager_while_any_thread_compares_and_as_before_afterwards():
    import torch._dynamo.eval_frame as frame

    before = frame._stance.stance
    inside, leave = threading.Event(), threading.Event()

    def first():
        with borrowed([nn.Linear(2, 2)]):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(30)
    with borrowed([nn.Linear(2, 2)]):
        leave.set()
        thread.join()
        assert frame._stance.stance == "force_eager"
    assert frame._stance.stance == before


def test_full_precision_holds_until_the_last_thread_is_done():
    torch.set_float32_matmul_precision("medium")
    try:
        inside, leave, cpu = threading.Event(), threading.Event(), torch.device("cpu")
        seen = []

        def first():
            with full_precision(cpu):
                inside.set()
                leave.wait(30)

        thread = threading.Thread(target=first)
        thread.start()
        inside.wait(30)
        seen.append(reduces_products(cpu))  # the caller's setting: this thread must ask for full precision itself
        with full_precision(cpu):
            leave.set()
            thread.join()
            seen.append(torch.backends.mkldnn.matmul.fp32_precision)
            seen.append(reduces_products(cpu))
        assert seen == [True, "ieee", False]
        assert reduces_products(cpu)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
