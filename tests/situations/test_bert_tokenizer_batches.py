"""BERT on batches of a Hugging Face tokenizer: BatchEncoding with token types and labels, to classify sentences."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def without_labels(model, batch):
    return model(**{key: value for key, value in batch.items() if key != "labels"})


def test_a_bert_in_its_collator_s_batches():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    batches = []
    for batch in sentences():
        segments = (torch.arange(batch["input_ids"].shape[1]) >= 3).long().expand_as(batch["input_ids"]).clone()
        segments[::2] = 0
        batch |= {"token_type_ids": segments * batch["attention_mask"], "labels": torch.arange(7) % 2}
        batches.append(transformers.BatchEncoding(batch))
    result = cp.compare(net, net, batches, progress=False)
    assert "classifier" in result.rows
    check(result, net, batches, run=without_labels, features=over_tokens())
    check_notes(result, r"position_embeddings", r"attention\.self\.dropout")
