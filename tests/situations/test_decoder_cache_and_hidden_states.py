"""A decoder that returns its cache and all hidden states, as people set it for generation and for probing."""

import numpy as np
import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def decoder():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    flags = {"use_cache": True, "output_hidden_states": True, "output_attentions": True}
    config = transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2, attn_implementation="eager", **flags)
    return transformers.LlamaForCausalLM(config)


def test_the_cache_and_the_hidden_states_change_nothing():
    net = decoder()
    batches = sentences()
    rows = ["model.layers.?", "model", "model.layers.?.self_attn"]
    result = cp.compare(net, net, batches, layers=rows, progress=False)
    assert result.rows[-2:] == ("model.layers.1", "model")
    check(result, net, batches, features=over_tokens())
    check_notes(result)


def test_the_network_itself_and_its_child_called_model_are_two_rows():
    net = decoder()
    batches = sentences()
    result = cp.compare(net, net, batches, layers=["model", "lm_head", ""], progress=False)
    assert len(set(result.rows)) == 3
    np.testing.assert_allclose(result.values[1], result.values[2], atol=1e-6)  # its logits stand for the network
    assert result.values[0, 2] < 0.9999
