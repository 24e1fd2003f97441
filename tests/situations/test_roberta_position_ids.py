"""RoBERTa counts positions over real tokens only, so its position embedding differs between samples and is a layer."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def test_positions_that_depend_on_the_padding_are_a_layer():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=20, pad_token_id=0)
    x, y = transformers.RobertaModel(config), transformers.RobertaModel(config)
    result = cp.compare(x, y, batches := sentences(), progress=False)
    assert "embeddings.position_embeddings" in result.rows
    check(result, x, batches, y, features=over_tokens())
    check_notes(result, r"attention\.self\.dropout", r"token_type_embeddings.* constant")
