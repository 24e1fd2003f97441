"""`generate()` inside `forward=`: after the prompt, each new token is a run of its own over the cache, "name#2", ..."""

import torch
from situation import check, check_notes, needs
from texts import over_tokens, sentences

import cka_probe as cp


def generate(model, batch):
    return model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
    )


def mask_of(row):
    return None if "#" in row else "attention_mask"  # a new token has no padding


def test_the_prompt_and_each_new_token_are_rows():
    transformers = needs("transformers", "hf")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 90, "n_positions": 16}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    net = transformers.GPT2LMHeadModel(config)
    batches = sentences(left=True)
    result = cp.compare(net, net, batches, layers="blocks", forward=generate, progress=False)
    assert result.rows[::2] == ("transformer.h.0", "transformer.h.0#2", "transformer.h.0#3")
    check(result, net, batches, run=generate, features=over_tokens(mask_of))
    check_notes(result)
