"""Folders of transformers: every format of weights, and what their files lack."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from cka_probe.distill.models.hugging_face import from_folder  # noqa: E402
from cka_probe.distill.models.sources import load_network  # noqa: E402

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**CONFIG))


def assert_same(model, saved):
    expected = saved.state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def folder_of(saved, folder, kind):
    """The network saved as `kind`: whole or cut into two, as safetensors or as files of torch.save."""
    if kind == "safetensors":
        saved.save_pretrained(folder)
    elif kind == "safetensors in parts":
        saved.save_pretrained(folder, max_shard_size="10KB")
    else:
        folder.mkdir()
        saved.config.save_pretrained(folder)
        state = saved.state_dict()
        if kind == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            parts = {key: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, key in enumerate(state)}
            for part in set(parts.values()):
                torch.save({key: state[key] for key in state if parts[key] == part}, folder / part)
            index = {"metadata": {"total_size": 1}, "weight_map": parts}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "safetensors in parts", "bin", "bin in parts"])
def test_the_weights_of_every_format_are_loaded(saved, tmp_path, kind):
    model, untrained, notes = from_folder(str(folder_of(saved, tmp_path / "net", kind)))
    assert_same(model, saved)
    assert (untrained, notes) == (False, [])


def test_a_folder_without_weights_is_untrained(saved, tmp_path):
    saved.config.save_pretrained(tmp_path)
    assert from_folder(str(tmp_path))[1:] == (True, [])
    # Files of a training run are no weights.
    torch.save({}, tmp_path / "training_args.bin")
    torch.save({}, tmp_path / "optimizer.pt")
    torch.save({}, tmp_path / "rng_state_0.pth")
    assert load_network(f"hf:{tmp_path}").untrained
    torch.save(saved.state_dict(), tmp_path.parent / "own.pt")
    loaded = load_network(f"hf:{tmp_path}", tmp_path.parent / "own.pt")
    assert not loaded.untrained
    assert_same(loaded.model, saved)


@pytest.mark.parametrize("kind", ["safetensors in parts", "bin in parts"])
def test_a_part_that_is_missing_is_named(saved, tmp_path, kind):
    folder = folder_of(saved, tmp_path / "net", kind)
    part = sorted(file for file in folder.iterdir() if "-of-" in file.name)[0]
    part.unlink()
    with pytest.raises(FileNotFoundError, match=f"its index names {part.name}, but that file is missing"):
        from_folder(str(folder))


def test_weights_that_are_random_are_named(saved, tmp_path):
    folder = folder_of(saved, tmp_path / "net", "safetensors")
    state = load_file(folder / "model.safetensors")
    total = len(state)
    left = {key: value for key, value in state.items() if not key.startswith("pooler")}
    save_file(left | {"head.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    _, untrained, notes = from_folder(str(folder))
    assert not untrained
    assert notes == [
        f"hf:{folder}: 2 of {total} weights are not in its files and are random: "
        "pooler.dense.bias, pooler.dense.weight",
        f"hf:{folder}: BertModel has no place for 1 of the weights in its files, which is not used: head.weight",
    ]


def test_weights_of_another_network_are_refused(saved, tmp_path):
    folder = folder_of(saved, tmp_path / "net", "safetensors")
    save_file({"other.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"none of the 39 weights of BertModel is in its files; they hold other\.weight"
    ):
        from_folder(str(folder))
    state = saved.state_dict() | {"embeddings.word_embeddings.weight": torch.zeros(60, 16)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"embeddings\.word_embeddings\.weight have another shape"):
        from_folder(str(folder))


def test_python_objects_and_damaged_files_are_refused(saved, tmp_path):
    folder = folder_of(saved, tmp_path / "net", "bin")
    torch.save(saved, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds Python objects beside its weights; they could run code"):
        from_folder(str(folder))
    other = folder_of(saved, tmp_path / "other", "safetensors")
    (other / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"cannot be loaded: SafetensorError"):
        from_folder(str(other))


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "adapter_model.safetensors", "tf_model.h5", "pytorch_model.pt"]
)
def test_weights_under_a_name_that_is_not_read_are_no_reason_for_random_ones(saved, tmp_path, name):
    saved.config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(ValueError, match=rf"holds {name}, but transformers reads only .* would have random weights"):
        from_folder(str(tmp_path))


def test_folders_of_other_libraries(tmp_path):
    for name, message in (("adapter_config.json", "adapter of PEFT"), ("model_index.json", "pipeline of diffusers")):
        folder = tmp_path / name[:5]
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=message):
            from_folder(str(folder))
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        from_folder("bert-base-uncased")


def test_code_of_a_folder_is_not_run(saved, tmp_path):
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise AssertionError('this code ran')\n")
    with pytest.raises(ValueError, match="such code is not run"):
        from_folder(str(tmp_path))


def test_the_logging_of_transformers_is_as_before(saved, tmp_path, capsys):
    folder = folder_of(saved, tmp_path / "net", "safetensors")
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    capsys.readouterr()
    from_folder(str(folder))
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == (level, bar)
    assert capsys.readouterr().err == ""
