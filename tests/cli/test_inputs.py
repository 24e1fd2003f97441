import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch.utils.data import TensorDataset

from cka_probe.cli.inputs import load_arrays, load_data


def test_arrays_of_each_kind_of_file(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", a=x, b=2 * x)
    save_file({"layer": x}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.npy")["x"], x)
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.npz")["b"], 2 * x)
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.safetensors")["layer"], x)


def test_pickles_and_other_files_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy cannot be read as npy"):
        load_arrays(tmp_path / "objects.npy")
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read as safetensors"):
        load_arrays(tmp_path / "broken.safetensors")
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(ValueError, match=re.escape("is not one of .npy, .npz, .safetensors")):
        load_arrays(tmp_path / "x.txt")


def test_digits_and_noise_are_the_same_every_time():
    for source in ("digits", "noise"):
        first, second = (list(load_data(source, samples=100, image_size=8, batch_size=40)) for _ in range(2))
        assert [len(batch[0]) for batch in first] == [40, 40, 20]
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)


def test_a_folder_of_images_in_the_order_of_their_paths(tmp_path):
    for name, level in (("b/2.png", 200), ("a/1.jpg", 10), ("3.bmp", 90)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (level, level, level)).save(path)
    (batch,) = load_data(str(tmp_path), image_size=16)
    assert batch.shape == (3, 3, 16, 16)
    assert batch[0].mean() > -2  # 3.bmp first, then a/1.jpg, the darkest
    assert batch[1].mean() < batch[0].mean() < batch[2].mean()


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no data 'imagenet'"):
        load_data("imagenet")
    with pytest.raises(ValueError, match="holds no images"):
        load_data(str(tmp_path))


def test_inputs_from_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((10, 4), dtype=np.float32))
    batches = list(load_data(str(tmp_path / "x.npy"), batch_size=4))
    assert [tuple(batch[0].shape) for batch in batches] == [(4, 4), (4, 4), (2, 4)]


def test_the_test_images_of_fashion_mnist(monkeypatch):
    asked = {}

    def small(**options):
        asked.update(options)
        test = TensorDataset(torch.arange(4.0).reshape(4, 1, 1, 1), torch.arange(4))
        return TensorDataset(torch.zeros(1, 1, 1, 1)), test

    monkeypatch.setattr("cka_probe.distill.data.fashion_mnist", small)
    (batch,) = load_data("fashion_mnist", image_size=16, channels=1)
    assert batch[0].flatten().tolist() == [0, 1, 2, 3]
    assert asked == {"size": 16, "channels": 1}
