"""A similarity matrix with all its fields."""

import numpy as np
import pytest

from cka_probe.similarity.matrix import SimilarityMatrix


@pytest.fixture
def matrix():
    return SimilarityMatrix(
        np.array([[0.9, -0.02, np.nan], [0.3, 0.6, np.nan]]),
        ["conv1", "fc"],
        ["stem", "mid", "dead"],
        standard_error=[[0.01, 0.1, np.nan], [0.02, 0.03, np.nan]],
        p_value=[[0, 0.7, np.nan], [0.01, 0.001, np.nan]],
        chance=np.full((2, 3), 0.25),
        notes=["dead: constant output"],
        measure="cka",
        meta={"kernel": "Linear()", "samples": np.int64(512), "degrees_of_freedom": 7, "taps": (1, 2), "model_x": "a"},
        row_models=["a", "a"],
        column_models=["b", "b", "ü"],
    )
