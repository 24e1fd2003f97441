"""Networks that normalise their input themselves and in place (``x.sub_(mean).div_(std)``), as many of Kaggle do."""

import pytest
import torch
from situation import check, images
from torch import nn

import cka_probe as cp


class Normalising(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x):
        return self.body(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_two_of_them_see_the_images_of_the_user_and_leave_them_as_they_are(scope):
    x, y, batches = Normalising(0), Normalising(1), [images(8, 8, seed=seed).abs() for seed in (0, 1, 2)]
    given = [batch.clone() for batch in batches]
    result = cp.compare(x, y, batches, scope=scope, progress=False)
    assert all(torch.equal(batch, before) for batch, before in zip(batches, given, strict=True))
    check(result, x, given if scope == "minibatch" else [torch.cat(given)], y)
    alone = cp.compare(x, x, batches, progress=False)
    check(alone, x, given)


def test_many_copies_of_one_network_are_equal():
    batches = [images(8, 8, seed=seed).abs() for seed in (0, 1)]
    result = cp.compare_many({str(i): Normalising(0) for i in range(3)}, batches, layers=["body.3"], progress=False)
    assert abs(result.values - 1).max() < 1e-6
