"""IA3 and modules_to_save of PEFT: scaled projections, and a head trained in full beside its frozen original."""

import copy

import torch
from adapters import PEFT_AND_TRANSFORMERS
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp

pytestmark = PEFT_AND_TRANSFORMERS


def test_a_classifier_with_scaled_keys_and_a_new_head():
    transformers, peft = needs("transformers", "hf"), needs("peft")
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    config = peft.IA3Config(
        task_type="SEQ_CLS",
        target_modules=["key", "value", "intermediate.dense"],
        feedforward_modules=["intermediate.dense"],
        modules_to_save=["classifier"],
    )
    adapted = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "ia3_" in name or "modules_to_save" in name:
                weight.normal_()
    batches = sentences()
    layers = ["bert.encoder.layer.?.attention.self.key", "bert.encoder.layer.?.intermediate.dense", "classifier"]
    result = cp.compare(
        base, adapted, batches, layers=layers, layers_y=["base_model.model." + one for one in layers], progress=False
    )
    check(result, base, batches, adapted, features=over_tokens())
    check_notes(result)
    leaves = cp.compare(base, adapted, batches, progress=False)
    assert [column.removeprefix("base_model.model.") for column in leaves.columns] == list(leaves.rows)
