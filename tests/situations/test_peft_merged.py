"""A LoRA adapter merged into the weights for serving: is the served network still the trained one?"""

import copy

import numpy as np
from adapters import PEFT_AND_TRANSFORMERS, lora_llama
from situation import check, check_notes
from texts import over_tokens, sentences

import cka_probe as cp

pytestmark = PEFT_AND_TRANSFORMERS


def test_the_merged_network_equals_the_adapted_one():
    _, adapted = lora_llama()
    merged = copy.deepcopy(adapted).merge_and_unload()
    batches = sentences()
    result = cp.compare(adapted, merged, batches, progress=False)
    assert [row.removeprefix("base_model.model.") for row in result.rows] == list(result.columns)
    check(result, adapted, batches, merged, features=over_tokens())
    np.testing.assert_allclose(np.diag(result.values), 1, atol=1e-5)
    check_notes(result, r"model_x.*rotary_emb", r"model_y.*rotary_emb")


def test_an_adapter_merged_in_place_stays_merged():
    base, adapted = lora_llama()
    adapted.merge_adapter()
    batches = sentences()
    result = cp.compare(base, adapted, batches, layers="blocks", progress=False)
    check(result, base, batches, adapted, features=over_tokens())
    check_notes(result)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.merged
