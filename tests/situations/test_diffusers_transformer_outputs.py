"""Diffusion transformers (DiT) of diffusers: outputs are dataclasses, and ``class_labels`` are an input, no target."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def test_every_layer_and_the_whole_network():
    diffusers = needs("diffusers")
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )
    batches = [
        {
            "hidden_states": images(6, 8, 4, seed),
            "timestep": torch.arange(6) * 99 + seed,
            "class_labels": torch.arange(6) + seed,
        }
        for seed in (0, 1)
    ]
    result = cp.compare(net, net, batches, layers=["leaves", "transformer_blocks.*", ""], progress=False)
    assert {"transformer_blocks.1.norm1.emb.class_embedder.embedding_table", "model"} <= set(result.rows)
    check(result, net, batches)
    check_notes(result)
