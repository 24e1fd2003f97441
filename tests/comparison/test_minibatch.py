"""The minibatch scope: where its statistics are kept."""

import pytest
from small_networks import image_batches, small_network

from cka_probe.comparison.minibatch import MinibatchPass
from cka_probe.comparison.request import ComparedModel, Request


@pytest.mark.parametrize(("device", "expected"), [(None, "cpu"), ("meta", "meta")])
def test_statistics_stay_where_the_models_will_run(device, expected):
    """With device="cuda" and models on the CPU, Gram matrices must not travel back in every batch."""
    models = [ComparedModel(small_network(0), "a", "leaves")]
    assert MinibatchPass(models, Request(image_batches(), device=device)).home.type == expected
