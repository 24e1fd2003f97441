"""DistilBERT on dict batches that hold more than it takes: numbers and texts of the samples (GLUE, datasets)."""

import torch
from situation import check, check_notes, needs
from texts import over_tokens, sentences

import cka_probe as cp


def test_numbers_and_texts_of_the_samples_are_not_passed_on_and_not_missed():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=40, vocab_size=90)
    net = transformers.DistilBertModel(config)
    plain = sentences()
    batches = [{**batch, "idx": torch.arange(7), "sentence": [f"text {i}" for i in range(7)]} for batch in plain]
    result = cp.compare(net, net, batches, progress=False)
    check(result, net, plain, features=over_tokens())
    check_notes(result, r"position_embeddings", r"attention\.dropout")
