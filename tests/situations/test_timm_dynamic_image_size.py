"""timm's ``dynamic_img_size=True``: one model, and batches of images of several sizes (buckets of resolution)."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def test_batches_of_several_resolutions():
    timm = needs("timm", "timm")
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, dynamic_img_size=True
    )
    batches = [images(6, 32, seed=0), images(6, 48, seed=1), images(6, 16, seed=2)]
    result = cp.compare(net, net, batches, layers=["patch_embed", "blocks.**", "norm", "head"], progress=False)
    check(result, net, batches)
    check_notes(result, r"attn_drop.* left out: it did not run")  # inside a fused function
