"""Longformer pads its input to a multiple of the window itself, so its layers are longer than the mask."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def longformer():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.LongformerConfig(**SIZES, attention_window=8, max_position_embeddings=40, pad_token_id=0)
    return transformers.LongformerModel(config)


def test_batches_of_whole_windows_are_pooled_over_real_tokens():
    net, batches = longformer(), sentences(lengths=(16, 16))
    result = cp.compare(net, net, batches, layers=["encoder.layer.?", "pooler"], progress=False)
    check(result, net, batches, features=over_tokens())
    check_notes(result)


def test_layers_that_are_longer_than_the_mask_are_in_a_note():
    net, batches = longformer(), sentences(lengths=(9, 9))
    result = cp.compare(net, net, batches, layers=["encoder.layer.?", "pooler"], progress=False)
    check(result, net, batches)
    check_notes(result, r"encoder\.layer\.0.*mask|mask.*encoder\.layer\.0")


def test_queries_with_tokens_before_samples_are_left_out_where_both_are_as_many():
    """Its attention turns (n, t, d) to (t, n, d) inside; with 16 sentences of 16 tokens only a trial shows it."""
    net, batches = longformer(), sentences(16, (16, 16))
    result = cp.compare(net, net, batches, layers=["**.self.query", "**.output.dense"], progress=False)
    assert not any("query" in row for row in result.rows)
    check(result, net, batches, features=over_tokens())
    check_notes(result, r"self\.query.*left out")
