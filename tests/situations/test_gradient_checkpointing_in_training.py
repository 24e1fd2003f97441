"""Gradient checkpointing in fine-tuning of large models, with a comparison between the forward and the backward."""

import copy

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def enable(net):
    """transformers 5 has another name for it."""
    getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)()


def checkpointed(net):
    return any(getattr(module, "gradient_checkpointing", False) for module in net.modules())


def gradients(compared):
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    start = copy.deepcopy(net)
    enable(net)
    net.train()
    batches = sentences()
    loss = net(**batches[0], labels=torch.arange(7) % 2).loss
    if compared:
        result = cp.compare(start, net, batches, layers="blocks", progress=False)
        check(result, start, batches, net, features=over_tokens())
        check_notes(result)
        assert net.training
        assert checkpointed(net)
    loss.backward()
    return [p.grad for p in net.parameters()]


def test_the_backward_recomputes_the_same_activations():
    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
