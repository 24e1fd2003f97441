"""CLIP with as many text tokens as image patches: the mask of the texts has the shape of the image's tokens."""

import torch
from situation import check, check_notes, images, needs
from texts import SIZES, masks, over_tokens, token_ids

import cka_probe as cp


def mask_of(row):
    return None if row.startswith("vision") else "attention_mask"


def test_the_mask_of_the_texts_is_not_used_on_the_image():
    transformers = needs("transformers", "hf")
    vision = {**SIZES, "image_size": 16, "patch_size": 4}
    del vision["vocab_size"]
    text = {**SIZES, "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    net = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    batches = [
        {
            "input_ids": token_ids(7, 17, seed),  # 4 x 4 patches and the class token
            "attention_mask": masks(7, 17, seed + 10),
            "pixel_values": images(7, 16, seed=seed),
        }
        for seed in range(2)
    ]
    result = cp.compare(net, net, batches, layers="blocks", progress=False)
    assert len(result.rows) == 4
    check(result, net, batches, features=over_tokens(mask_of))
    check_notes(result, r"vision_model.*mask|mask.*vision_model")
