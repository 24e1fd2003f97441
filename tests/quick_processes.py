"""Processes that start in a moment: they are forked from a server that has imported the libraries already.

A process that is spawned imports torch and the test's own module first, which takes some seconds of a core.
"""

import multiprocessing
import socket

import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "torch.distributed",
        "accelerate",
        "cka_probe.comparison.minibatch",
        "cka_probe.distill.training.classification",
        "cka_probe.distill.dense",
        "cka_probe.distill.recipes",
        "cka_probe.plotting",
    ]
)


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_processes(function, arguments, count, *, join=True):
    """Call ``function(rank, *arguments)`` in so many processes, as torch.multiprocessing.spawn does."""
    return torch.multiprocessing.start_processes(function, arguments, count, join=join, start_method="forkserver")
