"""Scenes that the tests of this folder share."""

import pytest
from small_detectors import SIZE

from cka_probe.distill.dense.scenes import make_scenes


@pytest.fixture(scope="package")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=6, val=4, size=SIZE, largest=24)
