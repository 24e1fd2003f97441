"""T5 in translation, source and target padded to one length: each side of the network has a mask of its own."""

import torch
from situation import check, check_notes, needs
from texts import masks, over_tokens, token_ids

import cka_probe as cp


def mask_of(row):
    """Keys and values of the cross-attention come from the encoder."""
    from_encoder = row.startswith("encoder") or row.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    return "attention_mask" if from_encoder else "decoder_attention_mask"


def test_each_layer_has_the_mask_of_its_side():
    transformers = needs("transformers", "hf")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 90}
    torch.manual_seed(0)
    net = transformers.T5Model(transformers.T5Config(**sizes, decoder_start_token_id=0))
    batches = [
        {
            "input_ids": token_ids(7, 12, seed),
            "attention_mask": masks(7, 12, seed + 10),
            "decoder_input_ids": token_ids(7, 12, seed + 20),
            "decoder_attention_mask": masks(7, 12, seed + 30),
        }
        for seed in range(2)
    ]
    result = cp.compare(net, net, batches, layers=["encoder.block.**", "decoder.block.**"], progress=False)
    assert "decoder.block.1.layer.1.EncDecAttention.k" in result.rows
    check(result, net, batches, features=over_tokens(mask_of))
    check_notes(result, r"relative_attention_bias")
