"""Pictures are drawn without a screen, and every figure is closed after its test."""

import matplotlib as mpl
import pytest


@pytest.fixture(autouse=True)
def _no_screen():
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")
