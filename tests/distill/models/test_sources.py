import re

import pytest
import torch
from torch import nn

from cka_probe.distill.models import build
from cka_probe.distill.models.saved_student import describe_student
from cka_probe.distill.models.sources import load_model, load_network
from cka_probe.distill.training.checkpoints import save_weights

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
def test_networks_by_name(source, kind, classes):
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


def test_what_is_known_about_the_weights(tmp_path):
    for source in ("resnet8", "torchvision:squeezenet1_1"):
        assert load_network(source).untrained
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    assert not load_network(f"{tmp_path / 'mine.py'}:network").untrained  # it may have loaded its weights itself
    torch.save(load_model("resnet8").state_dict(), tmp_path / "w.pt")
    assert not load_network("resnet8", tmp_path / "w.pt").untrained
    pytest.importorskip("timm", reason="needs timm")
    assert load_network("timm:resnet18").untrained


def test_the_folder_of_a_run(tmp_path, monkeypatch):
    network, run = build("resnet8", num_classes=10).eval(), tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    save_weights(network, run / "best.safetensors")
    with pytest.raises(ValueError, match=r"does not say which network .* give .*one/best\.safetensors as its weights"):
        load_network(str(run))
    (run / "student.json").write_text(describe_student("resnet8", 10, []))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = load_network(str(run))
    assert not found.untrained
    assert torch.equal(found.model(images), network(images))
    with pytest.raises(FileNotFoundError, match=r"has no best\.safetensors\. Runs below it: .*one"):
        load_network(str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").rename("resnet8")
    assert load_network("resnet8").untrained  # the name of a network comes first
    assert not load_network("./resnet8").untrained
