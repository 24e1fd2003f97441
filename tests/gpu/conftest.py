"""Tests in this folder need an NVIDIA GPU and are skipped without one; those with the fixture `cupy` also need CuPy."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

NOTICES = ("Synchronization debug mode is a prototype", ".*Profiler clears events at the end of each cycle")
"""Warnings of torch about tools that the tests use on purpose: the watch for synchronisations, and the profiler."""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            for notice in NOTICES:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{notice}"))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy", reason='needs CuPy: pip install "cka-probe[cuda13]"')


@pytest.fixture
def no_waiting():
    """A context in which torch raises an error if the host waits for the GPU."""

    class Watch:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    yield Watch()
    torch.cuda.set_sync_debug_mode("default")
