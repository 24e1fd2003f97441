"""Scenes in COCO's and Cityscapes' formats: boxes, label maps, seeds and settings."""

import json

import numpy as np
import pytest
from PIL import Image
from small_detectors import SIZE

from cka_probe.distill.dense.scenes import make_scenes


def test_scenes_have_boxes_that_hold_the_digits_of_the_label_map(scenes):
    coco = json.loads(scenes.train_annotations.read_text())
    assert len(coco["images"]) == 6
    for facts in coco["images"]:
        picture = np.asarray(Image.open(scenes.train_images / facts["file_name"]))
        assert picture.shape == (SIZE, SIZE, 3)
        frame = f"scenes_{facts['id']:06d}_000000"
        city = scenes.root / "leftImg8bit" / "train" / "scenes" / f"{frame}_leftImg8bit.png"
        labels = np.asarray(Image.open(scenes.root / "gtFine" / "train" / "scenes" / f"{frame}_gtFine_labelIds.png"))
        assert np.array_equal(np.asarray(Image.open(city)), picture)
        boxes = [entry for entry in coco["annotations"] if entry["image_id"] == facts["id"]]
        rest = labels.copy()
        for box in boxes:
            x, y, width, height = box["bbox"]
            inside = labels[y : y + height, x : x + width]
            assert set(np.unique(inside)) <= {0, box["category_id"]}
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):  # the box is tight
                assert edge.any()
            rest[y : y + height, x : x + width] = 0
        assert not rest.any()


def test_scenes_are_made_once_and_depend_on_the_seed(tmp_path, scenes):
    again = make_scenes(tmp_path / "a", train=6, val=4, size=SIZE, largest=24)
    assert again.train_annotations.read_text() == scenes.train_annotations.read_text()
    before = again.train_annotations.stat().st_mtime_ns
    assert make_scenes(tmp_path / "a", train=6, val=4, size=SIZE, largest=24) == again
    assert again.train_annotations.stat().st_mtime_ns == before
    other = make_scenes(tmp_path / "b", train=6, val=4, size=SIZE, largest=24, seed=1)
    assert other.train_annotations.read_text() != scenes.train_annotations.read_text()
    with pytest.raises(ValueError, match="holds scenes of other settings"):
        make_scenes(tmp_path / "a", train=6, val=4, size=SIZE, largest=24, seed=1)


def test_contrast_makes_light_digits_on_dark_ground(tmp_path):
    scenes = make_scenes(tmp_path, train=4, val=1, size=SIZE, largest=24, contrast=0.6)
    for path in sorted(scenes.train_images.iterdir()):
        picture = np.asarray(Image.open(path))
        frame = f"scenes_{path.stem[-6:]}_000000_gtFine_labelIds.png"
        digits = np.asarray(Image.open(scenes.root / "gtFine" / "train" / "scenes" / frame)) > 0
        assert picture[~digits].mean() < 0.4 * 255
        assert not digits.any() or picture[digits].mean() > 0.5 * 255


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 0}, "`train` must be at least 1"),
        ({"smallest": 4}, "`smallest` must be at least 8"),
        ({"most": -1}, "`most` must be at least 0"),
        ({"size": 300}, "digits must fit into the picture"),
        ({"smallest": 50, "largest": 40}, "`smallest` <= `largest`"),
        ({"contrast": 1.0}, r"`contrast` must be in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(tmp_path, **settings)
