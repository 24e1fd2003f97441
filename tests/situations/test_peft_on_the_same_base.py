"""`compare(base, get_peft_model(base))`: PEFT changes the network in place, so both are one network."""

import torch
from adapters import PEFT_AND_TRANSFORMERS
from situation import check, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp

pytestmark = PEFT_AND_TRANSFORMERS


def test_a_note_says_that_both_models_are_one():
    transformers, peft = needs("transformers", "hf"), needs("peft")
    torch.manual_seed(0)
    base = transformers.BertModel(transformers.BertConfig(**SIZES))
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query"]))
    batches = sentences()
    result = cp.compare(base, adapted, batches, layers="blocks", progress=False)
    check(result, base, batches, adapted, features=over_tokens())
    assert any("share" in note for note in result.notes), result.notes
    many = cp.compare_many({"base": base, "adapted": adapted}, batches, layers="blocks", progress=False)
    assert any("share" in note and "base" in note and "adapted" in note for note in many.notes), many.notes
