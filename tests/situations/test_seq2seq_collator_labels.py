"""The collator for seq2seq of transformers yields labels only; T5 makes the decoder's input of them in its forward."""

import pytest
import torch
from situation import check, check_notes, needs
from texts import masks, over_tokens, token_ids

import cka_probe as cp


def t5_and_batches():
    transformers = needs("transformers", "hf")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 90}
    torch.manual_seed(0)
    net = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    batches = [
        {
            "input_ids": token_ids(7, 12, seed),
            "attention_mask": masks(7, 12, seed + 10),
            "labels": token_ids(7, 8, seed + 20),
        }
        for seed in range(2)
    ]
    return net, batches


def test_without_the_labels_the_error_says_what_to_do():
    net, batches = t5_and_batches()
    with pytest.raises(ValueError, match="input_ids") as caught:  # the words of transformers
        cp.compare(net, net, batches, layers="encoder.block.?", progress=False)
    hint = " ".join(getattr(caught.value, "__notes__", []))
    assert "labels" in hint
    assert "forward=" in hint


def test_with_forward_they_are_used():
    net, batches = t5_and_batches()

    def run(model, batch):
        return model(**batch)

    def mask_of(row):
        return "attention_mask" if row.startswith("encoder") else None

    chosen = ["encoder.block.?", "decoder.block.?"]
    result = cp.compare(net, net, batches, layers=chosen, forward=run, progress=False)
    assert len(result.rows) == 4
    check(result, net, batches, run=run, features=over_tokens(mask_of))
    check_notes(result, r"decoder.*mask|mask.*decoder")


def test_a_network_that_decodes_its_source_instead_gets_a_note():
    """BART without labels runs, but its decoder reads the source."""
    transformers = needs("transformers", "hf")
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 90, "max_position_embeddings": 20}
    torch.manual_seed(0)
    net = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads))
    _, batches = t5_and_batches()
    result = cp.compare(net, net, batches, layers=["model.encoder.layers.0", "model.decoder.layers.0"], progress=False)
    assert any("labels" in note and "forward=" in note for note in result.notes)
