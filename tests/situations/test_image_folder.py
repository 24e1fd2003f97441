"""A folder of images, one folder for each class: without shuffling, each minibatch holds one class only."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from situation import check, check_notes
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp

COLOURS = [(230, 30, 30), (30, 230, 30), (30, 30, 230), (220, 220, 40)]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, colour in enumerate(COLOURS):
        place = tmp_path / f"class{number}"
        place.mkdir()
        for sample in range(16):
            pixels = np.clip(rng.normal(0, 60, (8, 8, 3)) + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{sample}.png")
    return torchvision.datasets.ImageFolder(tmp_path, torchvision.transforms.ToTensor())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))


def test_a_note_says_that_the_samples_are_sorted(folder):
    net, loader = network(), DataLoader(folder, batch_size=8)
    result = cp.compare(net, net, loader, progress=False)
    check(result, net, list(loader))  # the ratio of mean minibatch HSIC, although it is not what the user wants
    check_notes(result, r"(?i)shuffle|sorted|order")


def test_shuffled_images_have_no_note(folder):
    net = network()

    def loader():
        return DataLoader(folder, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))

    result = cp.compare(net, net, loader(), progress=False)
    check(result, net, list(loader()))
    check_notes(result)


def test_workers_read_the_folder(folder):
    net = network()
    loader = DataLoader(folder, batch_size=16, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(1))
    result = cp.compare(net, net, loader, progress=False)
    batches = DataLoader(folder, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    check(result, net, list(batches))
    check_notes(result)
