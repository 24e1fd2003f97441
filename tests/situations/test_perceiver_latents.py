"""Perceiver: the latents that attend to the input are as many as its tokens, and some modules return None."""

import torch
from situation import check, check_notes, needs
from texts import masks

import cka_probe as cp


def test_the_mask_of_the_input_is_not_used_on_the_latents():
    transformers = needs("transformers", "hf")
    sizes = {"num_latents": 9, "d_latents": 16, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 2}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    torch.manual_seed(0)
    net = transformers.PerceiverModel(transformers.PerceiverConfig(**sizes, **heads))
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"inputs": torch.randn(7, 9, 32, generator=generator), "attention_mask": masks(7, 9, seed)} for seed in range(2)
    ]
    result = cp.compare(net, net, batches, layers="encoder.self_attends.?", progress=False)
    assert len(result.rows) == 2
    check(result, net, batches)
    check_notes(result, r"self_attends\.0.*mask|mask.*self_attends\.0")
    leaves = cp.compare(net, net, batches, progress=False)
    assert any("layernorm2" in note for note in leaves.notes), "it returns None and is left out"
    assert len(leaves.rows) > 10
