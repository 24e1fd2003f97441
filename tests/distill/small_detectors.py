"""A small detector, and a small COCO folder, for the tests of dense distillation."""

import json

import numpy as np
import torch
from PIL import Image

from cka_probe.distill.dense.data import CocoBoxes
from cka_probe.distill.dense.networks import detector, small_pyramid

SIZE = 64


def network(architecture="fcos", width=8, channels=64, seed=0, **options):
    torch.manual_seed(seed)
    return detector(architecture, small_pyramid(width, 1, channels), 11, min_size=SIZE, max_size=SIZE, **options)


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def write_coco(folder, boxes, categories=((7, "seven"), (3, "three")), size=(20, 30)):
    folder.mkdir(exist_ok=True)
    height, width = size
    Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / "a.png")  # grey, as some COCO pictures are
    annotations = [
        {"id": i, "image_id": 1, "bbox": box, "category_id": label, "area": 1, "iscrowd": crowd}
        for i, (box, label, crowd) in enumerate(boxes, 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return CocoBoxes(folder, folder / "a.json")
