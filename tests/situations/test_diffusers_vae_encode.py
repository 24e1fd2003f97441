"""The encoder of an AutoencoderKL of diffusers runs through ``vae.encode``, which returns a distribution, no tensor."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def run(vae, batch):
    return vae.encode(batch).latent_dist


def test_the_encoder_of_a_vae_through_its_method():
    diffusers = needs("diffusers")
    torch.manual_seed(0)
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **types)
    batches = [images(5, 16, seed=seed) for seed in range(3)]
    result = cp.compare(vae, vae, batches, layers=["encoder.**", "quant_conv"], forward=run, progress=False)
    assert result.meta["samples"] == 15
    check(result, vae, batches, run=run)
    check_notes(result)

    everything = cp.compare(vae, vae, batches, forward=run, progress=False)
    check(everything, vae, batches, run=run)
    check_notes(everything, r"'decoder\.conv_in'.* left out: .*did not run")
