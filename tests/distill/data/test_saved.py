"""Data sets of Hugging Face on disk: columns, splits, messages."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cka_probe.distill.data import saved_dataset

datasets = pytest.importorskip("datasets")

NAMES = ["cat", "dog", "owl"]


def split(count, seed, label, size=(8, 8), names=NAMES):
    random = np.random.default_rng(seed)
    columns = {
        "img": [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)],
        label: [int(value) for value in random.integers(0, 3, count)],
        "source": [f"file {number}" for number in range(count)],
    }
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"img": datasets.Image(), label: kind, "source": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=features)


def saved(folder, label="label", test="test", **options):
    parts = {"train": split(6, 0, label, **options), test: split(4, 1, label, **options)}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return parts


@pytest.fixture(autouse=True)
def no_progress():
    datasets.disable_progress_bars()


@pytest.mark.parametrize(("label", "test"), [("label", "test"), ("fine_label", "validation")])
def test_images_and_labels_are_those_that_were_saved(tmp_path, label, test):
    parts = saved(tmp_path, label, test)
    train, tested = saved_dataset(tmp_path, augment=False)
    assert train.classes == NAMES
    for ours, theirs in ((train, parts["train"]), (tested, parts[test])):
        assert len(ours) == len(theirs)
        for (image, number), row in zip(DataLoader(ours, 1), theirs, strict=True):
            pixels = np.asarray(row["img"]).transpose(2, 0, 1) / 255
            mean, deviation = (np.array(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            np.testing.assert_allclose(image[0], (pixels - mean) / deviation, atol=1e-5)
            assert int(number) == row[label]


def test_size_augmentation_and_grey_images(tmp_path):
    saved(tmp_path, size=(20, 12))
    train, test = saved_dataset(tmp_path)
    assert {tuple(image.shape) for image, _ in train} == {(3, 12, 12)}
    torch.manual_seed(0)
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(test[0][0], test[0][0])
    assert saved_dataset(tmp_path, size=100)[1][0][0].shape == (3, 100, 100)
    grey = datasets.Dataset.from_dict(
        {"image": [np.zeros((8, 8), np.uint8)] * 4, "label": [0, 1, 0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")}),
    )
    datasets.DatasetDict(train=grey, test=grey).save_to_disk(str(tmp_path / "grey"))
    train, _ = saved_dataset(tmp_path / "grey")
    assert train[0][0].shape == (3, 8, 8)
    assert train.classes == ["0", "1"]


def test_columns_that_are_named(tmp_path):
    saved(tmp_path, "animal", names=None)
    with pytest.raises(
        ValueError, match=r"no column that can be the label\. Pass label=, one of its columns: img \(Image"
    ):
        saved_dataset(tmp_path)
    assert len(saved_dataset(tmp_path, label="animal")[0]) == 6
    with pytest.raises(ValueError, match=r"`label`: there is no column 'animall' .*animal"):
        saved_dataset(tmp_path, label="animall")
    with pytest.raises(ValueError, match=r"`label`: the column 'source' holds 'file \d'.*class_encode_column"):
        saved_dataset(tmp_path, label="source")
    with pytest.raises(ValueError, match=r"`image`: the column 'source' holds .*, not images"):
        saved_dataset(tmp_path, image="source", label="animal")


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no data set of Hugging Face\. Save one there"):
        saved_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no data set of Hugging Face"):
        saved_dataset(tmp_path)
    split(4, 0, "label").save_to_disk(str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"holds one split alone\. Save both: dataset\.train_test_split"):
        saved_dataset(tmp_path / "one")
    saved(tmp_path / "two", test="extra")
    with pytest.raises(ValueError, match=r"has no split 'test'\. Its splits: 'train', 'extra'"):
        saved_dataset(tmp_path / "two")
    assert len(saved_dataset(tmp_path / "two", test="extra")[1]) == 4


def test_classes_must_agree(tmp_path):
    parts = {"train": split(4, 0, "label"), "test": split(4, 1, "label", names=NAMES[::-1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match="The classes of 'label' are not the same in train and test"):
        saved_dataset(tmp_path)
