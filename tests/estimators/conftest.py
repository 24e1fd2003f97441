"""Fixtures of the estimators' tests."""

import numpy as np
import pytest


@pytest.fixture
def pair(rng):
    """Two related layers of different width and scale."""
    x = rng.normal(size=(14, 4)) * np.array([3.0, 1.0, 1.0, 0.2]) + 0.5
    return x, x @ rng.normal(size=(4, 3)) + rng.normal(size=(14, 3))
