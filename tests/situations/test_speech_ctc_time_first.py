"""Speech recognition with CTC: the loss of torch wants (t, n, c), so networks turn their output at the end."""

import torch
from situation import check, check_notes
from torch import nn

import cka_probe as cp


class Acoustic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(5, 8, 3, 2), nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 20)

    def forward(self, x):
        x = self.conv(x).relu().transpose(1, 2)
        return self.head(self.rnn(x)[0]).transpose(0, 1).log_softmax(-1)


def test_the_layers_have_samples_first_although_the_output_has_not():
    torch.manual_seed(0)
    net = Acoustic()
    batches = [torch.randn(9, 5, 21, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    result = cp.compare(net, net, [(x, torch.zeros(9, 4), torch.ones(9)) for x in batches], progress=False)
    assert result.rows == ("conv", "rnn", "head")
    check(result, net, batches)
    check_notes(result, r"parts")
