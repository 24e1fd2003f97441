"""Hypothesis strategies that several tests share."""

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

numbers = st.floats(-100, 100, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-6 else v)


@st.composite
def feature_pairs(draw):
    """Features of two layers for the same samples: unrelated, or the second is the first plus noise of any size."""
    n = draw(st.integers(2, 9))
    x = draw(hnp.arrays(float, (n, draw(st.integers(1, 4))), elements=numbers))
    if draw(st.booleans()):
        y = draw(hnp.arrays(float, (n, draw(st.integers(1, 4))), elements=numbers))
    else:
        noise = np.random.default_rng(draw(st.integers(0, 9))).normal(size=x.shape)
        y = x + 10.0 ** draw(st.integers(-6, 2)) * noise
    # Both layers have a spread, and float64 can resolve it beside the mean.
    for z in (x, y):
        assume(np.abs(z - z.mean(axis=0)).max() > 1e-6 * np.abs(z).max())
        assume(np.abs(z).max() > 0)
    return x, y
