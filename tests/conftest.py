"""Fixtures for all tests: `xp` runs a test once for each array library."""

import libraries
import pytest
from hypothesis import settings

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
