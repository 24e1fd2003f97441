"""ALBERT runs one layer several times: each run is a row of its own, "name", "name#2", "name#3"."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def test_each_run_of_the_shared_layer_is_a_row():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**{**SIZES, "num_hidden_layers": 3}, embedding_size=16)
    x, y = transformers.AlbertModel(config), transformers.AlbertModel(config)
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    batches = sentences()
    result = cp.compare(x, y, batches, layers=[layer, "encoder", "pooler"], progress=False)
    assert [row for row in result.rows if row.startswith(layer)] == [layer, layer + "#2", layer + "#3"]
    check(result, x, batches, y, features=over_tokens())
    check_notes(result)
