"""timm: what ``forward_features`` gives, without the classifier, is compared by running this method of the model."""

import torch
from situation import check, check_notes, images, needs

import cka_probe as cp


def run(model, batch):
    return model.forward_features(batch)


def test_a_method_of_the_model_runs_every_batch():
    timm = needs("timm", "timm")
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    batches = [images(6, seed=seed) for seed in range(3)]
    for layers in ("blocks", ["patch_embed", "blocks.*.mlp.**", "norm"]):
        result = cp.compare(net, net, batches, layers=layers, forward=run, progress=False)
        assert result.meta["batches"] == 3
        check(result, net, batches, run=run)
        check_notes(result)
