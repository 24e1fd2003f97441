"""LoRA by PEFT against the network before it: the adapted projections are layers like those of the base network."""

import numpy as np
from adapters import PEFT_AND_TRANSFORMERS, lora_llama
from situation import check, check_notes
from texts import over_tokens, sentences

import cka_probe as cp

pytestmark = PEFT_AND_TRANSFORMERS


def test_an_adapted_projection_is_one_leaf():
    base, adapted = lora_llama()
    batches = sentences()
    result = cp.compare(base, adapted, batches, progress=False)
    assert [column.removeprefix("base_model.model.") for column in result.columns] == list(result.rows)
    assert "model.layers.0.self_attn.q_proj" in result.rows
    check(result, base, batches, adapted, features=over_tokens())
    place = result.rows.index("model.layers.1.self_attn.q_proj")
    assert result.values[place, place] < 0.999, "the output with its adapter, not that of the base layer"
    check_notes(result, r"model_x.*rotary_emb", r"model_y.*rotary_emb")


def test_without_its_adapter_it_is_the_base_network():
    base, adapted = lora_llama()
    with adapted.disable_adapter():
        result = cp.compare(base, adapted, sentences(), layers="blocks", progress=False)
    np.testing.assert_allclose(np.diag(result.values), 1, atol=1e-6)
    check_notes(result)
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in adapted.named_parameters())
