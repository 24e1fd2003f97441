"""GPT-2 with padding on the left, as for generation: positions from the mask, the last token stands for the text."""

import torch
from situation import check, check_notes, needs
from texts import sentences

import cka_probe as cp


def last(_row, output, _batch):
    return output if output.ndim < 3 else output[:, -1]  # with padding on the left, the last place is a real token


def test_the_last_token_of_two_decoders():
    transformers = needs("transformers", "hf")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 90, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    x, y = transformers.GPT2LMHeadModel(config), transformers.GPT2LMHeadModel(config)
    batches = sentences(left=True)
    for batch in batches:
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    result = cp.compare(x, y, batches, pooling="last", progress=False)
    check(result, x, batches, y, features=last)
    check_notes(result, r"attn_dropout")
