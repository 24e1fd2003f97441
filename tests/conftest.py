"""Fixtures for all tests: `xp` runs a test once for each array library."""

import os
import signal
import sys

import libraries
import pytest
from hypothesis import settings

# numba, which dcor imports, sets the number of OpenMP threads of the whole process, torch's too. Two test processes of
# two threads each on two cores are ten times slower.
if "OMP_NUM_THREADS" in os.environ:
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

# A shell starts background jobs without Ctrl-C, which some tests and examples press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests share small machines: no deadline, and the same examples on every run.
settings.register_profile("cka_probe", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("cka_probe")


@pytest.fixture(params=libraries.present())
def xp(request):
    """The array API namespace of each library in turn."""
    return libraries.namespace(request.param)


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(20240111)


@pytest.fixture(autouse=True)
def _accelerate_forgets():
    """Remove the settings that a test leaves in accelerate's global state (transformers' Trainer does).

    Otherwise the outcome of a later test would depend on which tests ran before it in the same process.
    """

    def state():
        return getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)

    used_before = state() is not None and bool(state()._shared_state)
    yield
    if state() is not None and not used_before:
        state()._reset_state()
