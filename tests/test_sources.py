import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

from cka_probe.sources import load_arrays, load_data, load_model

MODEL_FILE = """
from torch import nn

def network():
    return nn.Linear(4, 2)

def number():
    return 3
"""


@pytest.mark.parametrize(
    ("source", "kind", "classes"),
    [("resnet8", "ResNet", 100), ("torchvision:squeezenet1_1", "SqueezeNet", 1000)],
)
def test_names_of_the_zoo_and_of_torchvision(source, kind, classes):
    model = load_model(source)
    assert kind.lower() in type(model).__name__.lower()
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, classes)


def test_a_function_in_a_file_or_module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODEL_FILE)
    assert isinstance(load_model(f"{tmp_path / 'my_models.py'}:network"), nn.Linear)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_model("my_models:network"), nn.Linear)
    with pytest.raises(TypeError, match=r"my_models:number returned int, not a torch\.nn\.Module"):
        load_model("my_models:number")
    with pytest.raises(ValueError, match="my_models has no function 'other'"):
        load_model("my_models:other")
    with pytest.raises(ValueError, match="There is no Python module 'their_models'"):
        load_model("their_models:network")
    with pytest.raises(FileNotFoundError, match=re.escape("There is no file nowhere.py")):
        load_model("nowhere.py:network")


def test_weights_are_loaded(tmp_path):
    from safetensors.torch import save_file as save_tensors

    torch.manual_seed(0)
    saved = load_model("resnet8", num_classes=10)
    save_tensors(saved.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(1)
    loaded = load_model("resnet8", tmp_path / "w.safetensors", num_classes=10)
    for a, b in zip(saved.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.architectures = ["BertModel"]
    config.save_pretrained(tmp_path / "config_only")
    assert type(load_model(f"hf:{tmp_path / 'config_only'}")).__name__ == "BertModel"
    torch.manual_seed(0)
    saved = transformers.BertModel(config)
    saved.save_pretrained(tmp_path / "whole")
    loaded = load_model(f"hf:{tmp_path / 'whole'}")
    torch.testing.assert_close(
        loaded.embeddings.word_embeddings.weight, saved.embeddings.word_embeddings.weight, rtol=0, atol=0
    )
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        load_model("hf:bert-base-uncased")


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="resnet20"):
        load_model("resnet21")


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
