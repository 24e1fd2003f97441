"""ViLT joins text tokens and image patches to one sequence, longer than the mask of the text: visual questions.

It draws the order of the patches at random in every forward, so only their mean can be compared.
"""

import torch
from situation import check, check_notes, images, mean_over_tokens, needs
from texts import SIZES, masks, token_ids

import cka_probe as cp


def mean(row, output, batch):
    if row == "pooler":
        return output
    return mean_over_tokens(batch["attention_mask"], output) if row.startswith("embeddings.text") else output.mean(1)


def test_a_note_names_layers_that_the_mask_does_not_fit():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.ViltConfig(
        **SIZES, image_size=16, patch_size=4, max_position_embeddings=20, max_image_length=-1
    )
    net = transformers.ViltModel(config)
    batches = [
        {
            "input_ids": token_ids(7, 9, seed),
            "attention_mask": masks(7, 9, seed + 10),
            "pixel_values": images(7, 16, seed=seed),
        }
        for seed in range(2)
    ]
    chosen = ["embeddings.text_embeddings.word_embeddings", "encoder.layer.?", "pooler"]
    result = cp.compare(net, net, batches, layers=chosen, pooling="mean", progress=False)
    assert len(result.rows) == 4
    check(result, net, batches, features=mean)
    check_notes(result, r"draws random numbers", r"encoder\.layer\.0.*mask|mask.*encoder\.layer\.0")
