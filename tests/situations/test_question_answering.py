"""Extractive question answering: the batches hold start_positions, so the output begins with a loss, one number."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def test_the_network_itself_is_compared_by_its_scores_and_not_by_its_loss():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    x, y = (transformers.BertForQuestionAnswering(transformers.BertConfig(**SIZES)) for _ in range(2))
    batches = [
        {**batch, "start_positions": torch.zeros(7).long(), "end_positions": torch.ones(7).long()}
        for batch in sentences()
    ]
    result = cp.compare(x, y, batches, layers=["bert.encoder.layer.?", "qa_outputs"], progress=False)
    check(result, x, batches, y, features=over_tokens())
    check_notes(result)
    whole = cp.compare(x, y, sentences(), layers=[""], progress=False)
    with_loss = cp.compare(x, y, batches, layers=[""], progress=False)
    assert (whole.values == with_loss.values).all()
