"""A recurrent language model that keeps its state from one batch to the next: its layers depend on what ran before."""

import copy

import torch
from situation import check_notes
from texts import token_ids
from torch import nn

import cka_probe as cp


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(90, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 90)
        self.register_buffer("state", torch.zeros(1, 9, 8))

    def forward(self, ids):
        outputs, state = self.rnn(self.embed(ids), self.state)
        self.state = state.detach()
        return self.head(outputs)


def test_a_note_says_that_the_forward_changes_the_state_of_the_model():
    torch.manual_seed(0)
    net = Stateful()
    with torch.no_grad():
        net(token_ids(9, 7, 5))
    result = cp.compare(net, copy.deepcopy(net), [token_ids(9, 7, seed) for seed in range(3)], progress=False)
    assert result.rows == ("embed", "rnn", "head")
    check_notes(result, r"model_x.*state", r"model_y.*state")
