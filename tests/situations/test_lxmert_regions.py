"""LXMERT answers questions on images: as many words as regions of the image, in two streams that read each other."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, masks, over_tokens, token_ids

import cka_probe as cp


def mask_of(row):
    return None if "visn" in row or "r_layers" in row else "attention_mask"


def test_the_mask_of_the_words_is_not_used_on_the_regions():
    transformers = needs("transformers", "hf")
    sizes = {name: value for name, value in SIZES.items() if name != "num_hidden_layers"}
    streams = {"l_layers": 2, "x_layers": 1, "r_layers": 2, "visual_feat_dim": 10}
    torch.manual_seed(0)
    net = transformers.LxmertModel(transformers.LxmertConfig(**sizes, **streams, max_position_embeddings=20))
    generator = torch.Generator().manual_seed(1)
    batches = [
        {
            "input_ids": token_ids(7, 9, seed),
            "attention_mask": masks(7, 9, seed + 10),
            "visual_feats": torch.randn(7, 9, 10, generator=generator),
            "visual_pos": torch.rand(7, 9, 4, generator=generator),
        }
        for seed in range(2)
    ]
    words = ["encoder.layer.?", "encoder.x_layers.0.lang_output", "pooler"]
    regions = ["encoder.visn_fc", "encoder.r_layers.?", "encoder.x_layers.0.visn_output"]
    result = cp.compare(net, net, batches, layers=[*words, *regions], progress=False)
    assert len(result.rows) == 8
    check(result, net, batches, features=over_tokens(mask_of))
    check_notes(result, r"encoder\.visn_fc.*pooled without a mask")
