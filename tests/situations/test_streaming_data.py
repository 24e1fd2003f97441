"""Data that streams (IterableDataset, WebDataset, Hugging Face streaming): nobody knows how many batches will come."""

import pytest
import torch
from situation import check, images
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import cka_probe as cp


class Shards(IterableDataset):
    """Three shards of images and labels, with the key of each sample, as WebDataset yields them."""

    def __iter__(self):
        for shard in range(3):
            for number, image in enumerate(images(7, 8, seed=shard)):
                yield image, number % 2, f"{shard:03d}/{number:05d}"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))


def run(model, batch):
    return model(batch[0])


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_a_stream_of_unknown_length(scope, progress):
    net, loader = network(), DataLoader(Shards(), batch_size=8)
    result = cp.compare(net, net, loader, scope=scope, forward=run, progress=progress)
    assert result.meta["samples"] == 21
    batches = list(loader) if scope == "minibatch" else [[images_of_all()]]
    check(result, net, batches)


def images_of_all():
    return torch.cat([images(7, 8, seed=shard) for shard in range(3)])
