"""nanoGPT, written by hand: its position embedding is (t, d) without samples, and t is the batch size by chance."""

import torch
from situation import check, check_notes
from texts import token_ids
from torch import nn

import cka_probe as cp


class NanoGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(90, 16), nn.Embedding(12, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 90, bias=False)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.wte(ids) + self.wpe(torch.arange(t))
        future = torch.full((t, t), float("-inf")).triu(1)
        return self.head(self.block(x, src_mask=future, is_causal=True))


def test_positions_are_no_samples_even_where_their_numbers_agree():
    torch.manual_seed(0)
    net = NanoGPT()
    batches = [token_ids(8, 8, seed) for seed in range(3)]
    result = cp.compare(net, net, batches, layers=["wte", "w?e", "block", "head"], progress=False)
    assert result.rows == ("wte", "block", "head")
    check(result, net, batches)
    check_notes(result, r"wpe.*left out")
