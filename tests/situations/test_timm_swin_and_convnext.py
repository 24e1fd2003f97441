"""timm's Swin keeps maps as (n, h, w, c), its ConvNeXt as (n, c, h, w): one comparison holds both."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def test_blocks_by_their_mean_over_positions():
    timm = needs("timm", "timm")
    torch.manual_seed(0)
    swin = timm.models.SwinTransformer(
        img_size=64, patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=5
    )
    convnext = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(12, 12, 12, 12), num_classes=5)
    batches = [images(6, 64, seed=0), images(6, 64, seed=1)]
    result = cp.compare(swin, convnext, batches, layers="blocks", pooling="mean", progress=False)
    assert result.shape == (2, 4)

    def mean(row, x, _batch):
        return x.mean((1, 2) if row.startswith("layers") else (2, 3))

    check(result, swin, batches, convnext, features=mean)
    check_notes(result)
