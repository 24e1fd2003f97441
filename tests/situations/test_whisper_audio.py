"""Whisper: audio features in the encoder, padded texts in the decoder, and the two are equally long by chance."""

import torch
from situation import check, needs
from texts import masks, over_tokens, token_ids

import cka_probe as cp


def mask_of(row):
    from_audio = row.startswith("encoder") or row.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
    return None if from_audio else "decoder_attention_mask"


def test_the_mask_of_the_texts_is_not_used_on_the_audio():
    transformers = needs("transformers", "hf")
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 90, "num_mel_bins": 16}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    places = {"max_source_positions": 20, "max_target_positions": 20}
    torch.manual_seed(0)
    net = transformers.WhisperModel(transformers.WhisperConfig(**sizes, **heads, **special, **places))
    generator = torch.Generator().manual_seed(1)
    batches = [
        {
            "input_features": torch.randn(7, 16, 40, generator=generator),
            "decoder_input_ids": token_ids(7, 20, seed),
            "decoder_attention_mask": masks(7, 20, seed + 10),
        }
        for seed in range(2)
    ]
    result = cp.compare(net, net, batches, layers="*", progress=False)
    blocks = cp.compare(net, net, batches, layers=["encoder.layers.?", "decoder.layers.?"], progress=False)
    assert len(blocks.rows) == 4
    for compared in (blocks, result):
        check(compared, net, batches, features=over_tokens(mask_of))
