"""`nn.Transformer` for translation, as in torch's tutorial: source and target with time first, (t, n, d)."""

import pytest
import torch
from situation import check
from torch import nn

import cka_probe as cp

# torch recommends samples first to everyone who builds this network.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(90, 16)
        self.transformer = nn.Transformer(16, 2, 2, 2, 32)
        self.head = nn.Linear(16, 90)

    def forward(self, source, target):
        future = self.transformer.generate_square_subsequent_mask(len(target))
        return self.head(self.transformer(self.embed(source), self.embed(target), tgt_mask=future))


def samples_first(_row, output, _batch):
    return output.transpose(0, 1).flatten(1)


def test_each_layer_of_both_sides():
    torch.manual_seed(0)
    net = Translator()
    batches = [((torch.randint(90, (7, 9)), torch.randint(90, (5, 9))), None) for _ in range(2)]
    chosen = ["embed", "transformer.encoder.layers.?", "transformer.decoder.layers.?", "head"]
    result = cp.compare(net, net, batches, layers=chosen, sample_axis=1, progress=False)
    assert result.meta["samples"] == 18
    assert {"embed#2", "transformer.decoder.layers.1"} < set(result.rows)
    check(result, net, batches, features=samples_first, atol=2e-6)
