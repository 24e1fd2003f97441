"""RWKV divides the weights of its later layers when it runs in eval mode, and multiplies them back in training."""

import copy

import torch
from situation import check, needs
from texts import over_tokens, sentences

import cka_probe as cp


def test_the_weights_are_divided_once_and_training_gets_them_back():
    transformers = needs("transformers", "hf")
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    torch.manual_seed(0)
    config = transformers.RwkvConfig(**sizes, intermediate_size=40, rescale_every=1)
    net = transformers.RwkvModel(config).train()
    fresh = copy.deepcopy(net)
    batches = sentences()
    result = cp.compare(net, net, batches, layers="blocks", progress=False)
    check(result, fresh, batches, features=over_tokens())
    assert net.training
    net(**batches[0])
    for (name, weight), before in zip(net.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(weight, before), name
