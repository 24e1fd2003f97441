"""Mixtral, a mixture of experts: its router and experts see tokens of all samples in one long list."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def test_routers_and_experts_are_left_out_and_blocks_are_right():
    transformers = needs("transformers", "hf")
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    net = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **experts))
    batches = sentences()
    result = cp.compare(net, net, batches, progress=False)
    assert not any(".gate" in row or "experts" in row for row in result.rows)
    check(result, net, batches, features=over_tokens())
    check_notes(result, r"rotary_emb", r"mlp\.gate.*left out", r"experts.*left out")
