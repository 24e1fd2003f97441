"""Prompt tuning and prefix tuning: virtual tokens make the sequence longer than its mask, or stand beside the keys."""

from adapters import PEFT_AND_TRANSFORMERS, adapted_llama
from situation import check, check_notes
from texts import over_tokens, sentences

import cka_probe as cp

pytestmark = PEFT_AND_TRANSFORMERS


def test_a_note_names_the_layers_that_hold_virtual_tokens():
    base, tuned = adapted_llama("PromptTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=4)
    batches = sentences()
    layers = {"layers": "model.layers.?", "layers_y": ["base_model.model.embed_tokens", "base_model.model.layers.?"]}
    result = cp.compare(base, tuned, batches, **layers, progress=False)

    def mask_of(row):
        return None if row.startswith("base_model.model.layers") else "attention_mask"

    check(result, base, batches, tuned, features=over_tokens(mask_of))
    check_notes(result, r"model_y.*base_model\.model\.layers\.0.*mask|mask.*base_model\.model\.layers\.0")


def test_a_prefix_leaves_the_tokens_as_they_are():
    base, tuned = adapted_llama("PrefixTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=4)
    batches = sentences()
    result = cp.compare(
        base, tuned, batches, layers="model.layers.?", layers_y="base_model.model.layers.?", progress=False
    )
    check(result, base, batches, tuned, features=over_tokens())
    check_notes(result)
