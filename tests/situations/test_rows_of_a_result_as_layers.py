"""A notebook: a first comparison of all layers, then again with the rows that looked interesting, and from a file."""

import torch
import torchvision
from situation import check, check_notes, images

import cka_probe as cp


def test_the_rows_of_one_result_are_the_layers_of_the_next(tmp_path):
    torch.manual_seed(0)
    x, y = torchvision.models.resnet18(), torchvision.models.resnet18()
    batches = [images(6, 32, seed=seed) for seed in range(2)]
    first = cp.compare(x, y, batches, layers="layer1.?.*", progress=False)
    assert "layer1.0.relu#2" in first.rows
    again = cp.compare(x, y, batches, layers=first.rows, layers_y=first.columns, progress=False)
    assert again.rows == first.rows
    assert (again.values == first.values).all()
    few = cp.compare(x, y, batches, layers=["layer1.0.relu#2", "layer1.1.bn2"], layers_y=first.columns, progress=False)
    assert few.rows == ("layer1.0.relu#2", "layer1.1.bn2")
    check(few, x, batches, y)
    check_notes(few)
    few.save(tmp_path / "few.npz")
    loaded = cp.SimilarityMatrix.load(tmp_path / "few.npz")
    assert (loaded.values == few.values).all()
    assert loaded.notes == few.notes
    assert loaded.rows == few.rows
    same = cp.compare(x, y, batches, layers=loaded.rows, layers_y=loaded.columns, progress=False)
    assert (same.values == few.values).all()
