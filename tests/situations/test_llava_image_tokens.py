"""LLaVA puts image tokens among the words: the language model has the mask of the text, the vision tower has none."""

import torch
from situation import check, check_notes, images, needs
from texts import SIZES, masks, over_tokens, token_ids

import cka_probe as cp


def mask_of(row):
    return "attention_mask" if "language_model" in row else None


def test_vision_tower_and_language_model():
    transformers = needs("transformers", "hf")
    tower = {**SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 16, "model_type": "clip_vision_model"}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=tower, text_config={**SIZES, "model_type": "llama"}, image_token_index=1, image_seq_length=4
    )
    net = transformers.LlavaForConditionalGeneration(config)
    batches = []
    for seed in range(2):
        ids, mask = token_ids(7, 11, seed), masks(7, 11, seed, shortest=6)
        ids[:, 1:5] = 1  # the places of the four image tokens
        batches.append({"input_ids": ids, "attention_mask": mask, "pixel_values": images(7, 16, seed=seed)})
    chosen = ["model.vision_tower.encoder.layers.?", "model.language_model.layers.?"]
    result = cp.compare(net, net, batches, layers=chosen, progress=False)
    assert len(result.rows) == 4
    check(result, net, batches, features=over_tokens(mask_of))
    check_notes(result, r"vision_tower.*mask|mask.*vision_tower")
