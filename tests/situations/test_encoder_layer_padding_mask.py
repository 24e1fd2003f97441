"""`nn.TransformerEncoder` with `src_key_padding_mask`: in eval mode torch switches to nested tensors for speed."""

import pytest
import torch
from situation import check, flattened, mean_over_tokens
from texts import masks, token_ids
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import CaptureError

# torch warns that its nested tensors are a prototype, whoever makes them.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embed, self.encoder, self.head = nn.Embedding(90, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, ids, src_key_padding_mask):
        x = self.encoder(self.embed(ids), src_key_padding_mask=src_key_padding_mask)
        return self.head(x.masked_fill(src_key_padding_mask[..., None], 0).sum(1))


def slow_path(model, batch):
    """The same network without nested tensors: their values at real tokens agree up to rounding."""
    model.encoder.enable_nested_tensor = False
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return model(**batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_padding_of_torch_s_own_transformer():
    torch.manual_seed(0)
    net = Classifier()
    batches = [{"ids": token_ids(7, 9, seed), "src_key_padding_mask": masks(7, 9, seed) == 0} for seed in range(2)]

    def mean(row, output, batch):
        if row == "head":
            return flattened(row, output, batch)
        return mean_over_tokens(~batch["src_key_padding_mask"], output)

    def forward(model, batch):
        return model(**batch)

    chosen = ["embed", "encoder.layers.0", "encoder.layers.1", "encoder", "head"]
    try:
        result = cp.compare(net, net, batches, layers=chosen, progress=False)
    except CaptureError as error:
        assert "encoder.layers.0" in str(error)  # noqa: PT017 - an error and a right number are both fine
        assert "nested" in str(error)  # noqa: PT017
    else:
        check(result, net, batches, run=slow_path, features=mean, atol=1e-5)
    rest = cp.compare(net, net, batches, progress=False)
    assert {"embed", "head"} <= set(rest.rows)
    assert net.training
