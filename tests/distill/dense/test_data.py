"""CocoBoxes: clipped boxes, crowds, category ids, flips and missing files."""

import pytest
from small_detectors import write_coco

from cka_probe.distill.dense.data import CocoBoxes


def test_boxes_are_clipped_crowds_are_separate_and_boxes_outside_are_left_out(tmp_path):
    data = write_coco(
        tmp_path,
        [
            ([-5, 2, 10, 4], 3, 0),
            ([25, 15, 50, 50], 7, 0),
            ([40, 2, 5, 5], 3, 0),
            ([1, 1, 4, 4], 7, 1),
            ([2, 2, 0, 5], 3, 0),
        ],
    )
    image, target = data[0]
    assert image.shape == (3, 20, 30)
    assert target["boxes"].tolist() == [[0, 2, 5, 6], [25, 15, 30, 20]]
    assert target["labels"].tolist() == [1, 2]
    assert target["annotated"]["boxes"].tolist() == [[0, 2, 5, 6], [25, 15, 30, 20], [1, 1, 5, 5]]
    assert target["annotated"]["labels"].tolist() == [1, 2, 2]
    assert target["annotated"]["iscrowd"].tolist() == [0, 0, 1]
    assert data.classes == ("background", "three", "seven")
    assert data.notes == (
        "2 boxes reach out of their pictures and were clipped.",
        "2 boxes have no area within their pictures and were left out.",
    )


def test_a_picture_without_boxes(tmp_path):
    _, target = write_coco(tmp_path, [])[0]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)


def test_category_ids_may_be_kept_and_pictures_flipped(tmp_path):
    write_coco(tmp_path, [([2, 3, 4, 5], 7, 0), ([0, 0, 9, 9], 3, 1)])
    kept = CocoBoxes(tmp_path, tmp_path / "a.json", flip=1.0, keep_ids=True)
    _, target = kept[0]
    assert target["labels"].tolist() == [7]
    assert target["boxes"].tolist() == [[24, 3, 28, 8]]
    assert target["annotated"]["boxes"].tolist() == [[24, 3, 28, 8], [21, 0, 30, 9]]
    assert kept.classes == ("background", "", "", "three", "", "", "", "seven")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder of pictures"):
        CocoBoxes(tmp_path / "none", tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no annotation file"):
        CocoBoxes(tmp_path, tmp_path / "none.json")
    write_coco(tmp_path, [])
    with pytest.raises(ValueError, match="`flip` must be a probability"):
        CocoBoxes(tmp_path, tmp_path / "a.json", flip=2)
