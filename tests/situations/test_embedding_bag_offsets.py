"""`nn.EmbeddingBag` in text classification, as in torch's tutorial: the words of all texts in one list, and offsets."""

import torch
from situation import check, check_notes
from texts import token_ids
from torch import nn

import cka_probe as cp


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(90, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, words, offsets):
        return self.head(self.hidden(self.bag(words, offsets)).tanh())


def test_the_samples_are_not_counted_by_the_words():
    torch.manual_seed(0)
    net = Classifier()
    batches = []
    for seed in range(3):
        lengths = torch.randint(2, 9, (8,), generator=torch.Generator().manual_seed(seed))
        offsets = lengths.cumsum(0) - lengths
        batches.append({"words": token_ids(1, int(lengths.sum()), seed)[0], "offsets": offsets})
    result = cp.compare(net, net, batches, forward=lambda model, batch: model(**batch), progress=False)
    assert result.rows == ("bag", "hidden", "head")
    assert result.meta["samples"] == 24
    check(result, net, batches)
    check_notes(result)
