"""Batches that are too large for Gram matrices are cut where the value does not depend on their size."""

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from torch import nn

import cka_probe as cp

NET = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) for size in sizes]


def expected(pieces, estimator="unbiased"):
    return reference_cka([cloned(NET, piece) for piece in pieces], estimator=estimator)


def compared(data, **options):
    return cp.compare(NET, NET, data, progress=False, **options)


def cuts(result):
    return [note for note in result.notes if "were cut into minibatches of at most 256" in note]


def test_a_large_batch_is_cut_and_one_note_tells_it():
    data = batches(1000, 700, 100)
    pieces = [*data[0].tensor_split(4), *data[1].tensor_split(3), data[2]]
    result = compared(data)
    np.testing.assert_allclose(result.values, expected(pieces), atol=1e-6)
    assert len(cuts(result)) == 1
    whole = expected(data)
    assert np.abs(result.values - whole).max() < 4 * np.nanmax(result.standard_error)


def test_targets_masks_and_a_small_batch_beside_it_go_with_their_samples():
    data = batches(601, 2)
    joined = torch.cat(data)
    result = compared([(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in data])
    np.testing.assert_allclose(result.values, expected(joined.tensor_split(3)), atol=1e-6)


def test_batches_of_a_usual_size_stay_whole_without_a_note():
    data = batches(512, 300)
    result = compared(data)
    np.testing.assert_allclose(result.values, expected(data), atol=1e-6)
    assert not cuts(result)


def test_the_biased_estimator_keeps_its_batches():
    data = batches(600, 600)
    result = compared(data, estimator="biased")
    np.testing.assert_allclose(result.values, expected(data, "biased"), atol=1e-6)
    assert not cuts(result)


def test_the_note_says_how_to_keep_the_batches():
    data = batches(600, 600)
    result = compared(data, forward=lambda model, batch: model(batch))
    np.testing.assert_allclose(result.values, expected(data), atol=1e-6)
    assert not cuts(result)


@pytest.mark.parametrize("options", [{"kernel": cp.RBF()}, {"data_y": batches(600, 600)}])
def test_nothing_is_cut_where_the_value_depends_on_the_size_or_two_loaders_go_together(options):
    assert not cuts(compared(batches(600, 600), **options))


def test_a_stopped_comparison_goes_on_with_the_same_minibatches(tmp_path):
    data = batches(1000, 1000, 1000)
    path = tmp_path / "half.ckpt"
    whole = cp.compare(NET, NET, data, layers=["0", "2"], progress=False)

    def stream(stop):
        for index, batch in enumerate(data):
            if index == stop:
                raise KeyboardInterrupt
            yield batch

    partial = cp.compare(NET, NET, stream(2), layers=["0", "2"], progress=False, checkpoint=path)
    assert partial.meta["partial"]
    again = cp.compare(NET, NET, data, layers=["0", "2"], progress=False, checkpoint=path)
    np.testing.assert_allclose(again.values, whole.values, rtol=1e-12)
    assert cuts(again)
