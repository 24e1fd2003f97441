"""Linear layers replaced by quantised ones, as bitsandbytes does it: an own class with an int8 weight in a buffer."""

import copy

import torch
from situation import check, check_notes, needs
from texts import over_tokens, sentences
from torch import nn

import cka_probe as cp


class Linear8bit(nn.Module):
    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantised(net):
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Linear8bit(child))
    return net


def test_a_network_before_and_after_quantisation():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    base = transformers.DistilBertModel(
        transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=40, vocab_size=90)
    )
    small = quantised(copy.deepcopy(base))
    batches = sentences()
    result = cp.compare(base, small, batches, progress=False)
    assert result.rows == result.columns
    check(result, base, batches, small, features=over_tokens())
    assert (result.values.diagonal() > 0.999).all()
    check_notes(result, r"position_embeddings", r"attention\.dropout")
