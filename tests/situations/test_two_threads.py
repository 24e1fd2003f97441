"""A web service or a notebook compares in two threads at once: the same models, or models of their own."""

import threading

import numpy as np
import torch
from torch import nn

import cka_probe as cp


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def in_threads(jobs):
    found = [None] * len(jobs)

    def work(place):
        try:
            found[place] = cp.compare(*jobs[place], progress=False).values
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 16, generator=generator) for _ in range(6)]


def test_the_same_models_with_other_data():
    x, y = network(0), network(1)
    alone = [cp.compare(x, y, data(seed), progress=False).values for seed in range(4)]
    for _ in range(3):
        for values, expected in zip(in_threads([(x, y, data(seed)) for seed in range(4)]), alone, strict=True):
            if isinstance(values, Exception):
                assert "thread" in str(values), values  # a clear refusal
            else:
                np.testing.assert_array_equal(values, expected)
    assert not any(module._forward_hooks for module in (*x.modules(), *y.modules()))
    assert all(module.training for module in (*x.modules(), *y.modules()))


def test_models_of_their_own():
    jobs = [(network(2 * i), network(2 * i + 1), data(i)) for i in range(4)]
    alone = [cp.compare(*job, progress=False).values for job in jobs]
    for values, expected in zip(in_threads(jobs), alone, strict=True):
        np.testing.assert_array_equal(values, expected)
