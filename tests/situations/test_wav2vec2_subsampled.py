"""wav2vec 2.0: the mask counts samples of the sound, the encoder has one state for eight of them."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, masks

import cka_probe as cp


def test_a_note_says_that_the_mask_of_the_sound_does_not_fit_the_encoder():
    transformers = needs("transformers", "hf")
    convolutions = {"conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (8, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**SIZES, **convolutions, **positions, **norm)
    x, y = transformers.Wav2Vec2Model(config), transformers.Wav2Vec2Model(config)
    generator = torch.Generator().manual_seed(1)
    batches = [
        {
            "input_values": torch.randn(7, 160, generator=generator),
            "attention_mask": masks(7, 160, seed, shortest=60),
        }
        for seed in range(2)
    ]
    result = cp.compare(x, y, batches, layers=["feature_projection.projection", "encoder.layers.?"], progress=False)
    check(result, x, batches, y)  # every state counts, those of the padding too
    check_notes(result, r"encoder\.layers\.0.*mask|mask.*encoder\.layers\.0")
    leaves = cp.compare(x, y, batches, progress=False)
    assert not any("parametrizations" in row for row in leaves.rows)
    assert not any("parametrizations" in note for note in leaves.notes)
    assert "encoder.pos_conv_embed.conv" in leaves.rows
