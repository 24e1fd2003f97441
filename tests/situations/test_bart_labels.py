"""BART in summarisation: the loader's batches hold labels, and the targets are as long as the sources by chance."""

import torch
from situation import check, check_notes, needs
from texts import masks, over_tokens, token_ids

import cka_probe as cp


def mask_of(row):
    from_encoder = row.startswith("encoder") or row.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
    return "attention_mask" if from_encoder else None  # the batch has no mask of the targets


def run(model, batch):
    return model(**{key: value for key, value in batch.items() if key != "labels"})


def test_the_mask_of_the_sources_is_not_used_on_the_targets():
    transformers = needs("transformers", "hf")
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 90, "max_position_embeddings": 20}
    torch.manual_seed(0)
    net = transformers.BartModel(transformers.BartConfig(**sizes, **heads))
    batches = [
        {
            "input_ids": token_ids(7, 10, seed),
            "attention_mask": masks(7, 10, seed + 10),
            "decoder_input_ids": token_ids(7, 10, seed + 20),
            "labels": token_ids(7, 10, seed + 20).roll(-1, 1),
        }
        for seed in range(2)
    ]
    result = cp.compare(net, net, batches, layers=["encoder.layers.?", "decoder.layers.?"], progress=False)
    assert len(result.rows) == 4
    check(result, net, batches, run=run, features=over_tokens(mask_of))
    check_notes(result, r"decoder.*without.*mask|mask.*decoder|decoder_attention_mask")
