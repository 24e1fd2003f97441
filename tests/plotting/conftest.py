"""Pictures are drawn without a screen, and every figure is closed after its test."""

import matplotlib as mpl
import pytest
from reports import chromium


@pytest.fixture(autouse=True)
def _no_screen():
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chrome = chromium(tmp_path_factory.mktemp("profile"))
    yield chrome
    chrome.quit()
