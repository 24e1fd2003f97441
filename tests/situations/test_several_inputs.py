"""Networks with several inputs, such as an image and a table: a loader gives ((image, table), label)."""

import torch
from situation import check, check_notes, images
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
        self.table, self.head = nn.Linear(5, 6), nn.Linear(150, 2)

    def forward(self, image, table):
        return self.head(torch.cat([self.image(image), self.table(table)], 1))


def test_pairs_of_inputs_as_the_default_collate_makes_them():
    torch.manual_seed(0)
    net, tables = Fusion(), torch.randn(20, 5)
    samples = [
        ((image, table), number % 2) for number, (image, table) in enumerate(zip(images(20, 8), tables, strict=True))
    ]
    loader = DataLoader(samples, batch_size=6)  # the last batch of two joins the one before
    result = cp.compare(net, net, loader, progress=False)
    assert result.meta["samples"] == 20
    batches = list(loader)
    last = [torch.cat(pair) for pair in zip(batches[2][0], batches[3][0], strict=True)]
    check(result, net, [*batches[:2], (last, None)])
    check_notes(result)


def test_two_inputs_without_a_target_get_a_hint():
    torch.manual_seed(0)
    net = Fusion()
    try:
        cp.compare(net, net, [(images(6, 8), torch.randn(6, 5))], progress=False)
    except TypeError as error:
        message = "".join([str(error), *getattr(error, "__notes__", [])])
        assert "forward=" in message
        assert "((" in message
    else:
        raise AssertionError("the second input was dropped in silence")
