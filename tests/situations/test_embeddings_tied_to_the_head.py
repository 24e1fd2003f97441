"""A language model whose head has the weights of its embedding: one parameter, but two layers with two outputs."""

import torch
from situation import check, check_notes
from texts import token_ids
from torch import nn

import cka_probe as cp


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(90, 12), nn.GRU(12, 12, batch_first=True)
        self.head = nn.Linear(12, 90, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.body(self.embed(ids))[0])


def test_both_are_layers_and_no_note_speaks_of_sharing():
    torch.manual_seed(0)
    x, y = Tied(), Tied()
    batches = [token_ids(9, 7, seed) for seed in range(2)]
    result = cp.compare(x, y, batches, progress=False)
    assert result.rows == ("embed", "body", "head")
    check(result, x, batches, y)
    check_notes(result)
