"""`TensorDataset(ids, mask)` in a DataLoader: only the first part goes to the network unless `forward=` passes both."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, masks, over_tokens, token_ids
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp


def bert():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES))


def test_a_note_says_that_the_mask_was_not_passed_on():
    net = bert()
    loader = DataLoader(TensorDataset(token_ids(14, 9, 1), masks(14, 9, 2)), 7)
    result = cp.compare(net, net, loader, layers="blocks", progress=False)
    check(result, net, list(loader))
    check_notes(result, r"(first|1).*of the 2 parts|part.*not passed|mask")


def test_with_forward_both_parts_are_used():
    net = bert()
    loader = DataLoader(TensorDataset(token_ids(14, 9, 1), masks(14, 9, 2)), 7)
    result = cp.compare(
        net,
        net,
        loader,
        layers="blocks",
        forward=lambda model, batch: model(batch[0], attention_mask=batch[1]),
        pooling="cls",
        progress=False,
    )
    check(
        result,
        net,
        list(loader),
        run=lambda model, batch: model(batch[0], attention_mask=batch[1]),
        features=lambda _row, output, _batch: output[:, 0],
    )
    as_dicts = [{"input_ids": ids, "attention_mask": mask} for ids, mask in loader]
    result = cp.compare(net, net, as_dicts, layers="blocks", progress=False)
    check(result, net, as_dicts, features=over_tokens())
    check_notes(result)
