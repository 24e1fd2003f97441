"""Denoisers of diffusers take ``sample`` and ``timestep`` as keywords; the timestep may be one number for the batch."""

import pytest
import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return needs("diffusers").UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4, **blocks
    )


@pytest.mark.parametrize("shape", [(), (1,)], ids=["a number", "one element"])
def test_one_timestep_for_the_batch_does_not_count_the_samples(shape):
    net = unet()
    batches = [{"timestep": torch.full(shape, 10 + seed), "sample": images(6, 8, seed=seed)} for seed in (0, 1)]
    layers = ["conv_in", "down_blocks.*.resnets.0.*", "mid_block", "time_embedding", ""]
    result = cp.compare(net, net, batches, layers=layers, progress=False)
    assert result.meta["samples"] == 12
    check(result, net, batches)
    check_notes(result, r"constant over the samples .*'time_embedding'")  # one timestep, one embedding


def test_a_timestep_for_each_sample():
    net = unet()
    batches = [{"sample": images(6, 8, seed=seed), "timestep": torch.arange(6) * 100 + seed} for seed in (0, 1)]
    result = cp.compare(net, net, batches, progress=False)
    assert {"time_embedding.linear_1", "mid_block.attentions.0.to_q", "conv_out"} <= set(result.rows)
    check(result, net, batches)
    check_notes(result)
