"""Signatures of many models: here, in other processes, on a dask cluster; errors are rows; a second call goes on."""

import functools

import joblib
import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network

import cka_probe as cp

LOADED = []


def load(seed: int):
    LOADED.append(seed)
    if seed == 1:
        raise OSError("no weights of seed 1\non this disk")
    return small_network(seed)


def loaders(count: int = 3):
    return {f"net{seed}": functools.partial(load, seed) for seed in range(count)}


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_failed_model_is_a_row(tmp_path, n_jobs):
    table = cp.signatures(loaders(), image_batches(), tmp_path / "new" / "folder", n_jobs=n_jobs)
    assert table["model"].tolist() == ["net0", "net1", "net2"]
    assert table["state"].tolist() == ["made", "failed", "made"]
    assert table["error"].tolist() == ["", "OSError: no weights of seed 1", ""]
    assert table["layers"].tolist() == [5, 0, 5]
    found = {one.name: one for one in map(cp.load_signature, (tmp_path / "new" / "folder").iterdir())}
    assert set(found) == {"net0", "net2"}
    direct = cp.compare(small_network(0), small_network(2), image_batches(), progress=False)
    np.testing.assert_allclose(cp.compare_signatures(found["net0"], found["net2"]).values, direct.values, atol=1e-6)


def test_a_second_call_makes_what_is_missing(tmp_path):
    cp.signatures(loaders(2), image_batches(), tmp_path)
    LOADED.clear()
    table = cp.signatures(((name, model) for name, model in loaders(4).items()), image_batches, tmp_path)
    assert table["state"].tolist() == ["there", "failed", "made", "made"]
    assert LOADED == [1, 2, 3]


def test_an_atlas_gets_the_signatures_and_goes_on(tmp_path):
    atlas = cp.Atlas(tmp_path / "atlas", sketch=cp.Sketch(128))
    nets = {"a": small_network(0), "b": small_network(2)}
    for states in (["made", "made"], ["there", "there"]):
        table = cp.signatures(nets, image_batches(), atlas, form=cp.Sketch(128))
        assert table["state"].tolist() == states
    assert atlas.models == ("a", "b")
    assert len(cp.Atlas(tmp_path / "atlas")) == 2


@pytest.mark.parametrize("make", [lambda path: path / "folder", lambda path: cp.Atlas(path / "atlas")])
def test_other_samples_and_settings_are_not_mixed(tmp_path, make):
    place = make(tmp_path)
    cp.signatures({"a": small_network(0)}, image_batches(), place)
    other = cp.signatures({"a": small_network(0), "b": small_network(2)}, image_batches(seed=1), place)
    assert other["state"].tolist() == ["there", "failed"]
    assert "samples" in other["error"][1]
    biased = cp.signatures({"a": small_network(0)}, image_batches(), place, estimator="biased")
    assert biased["state"].tolist() == ["failed"]
    assert "has estimator unbiased, not biased: choose another place" in biased["error"][0]
    pooled = cp.signatures({"a": small_network(0)}, image_batches(), place, pooling="mean")
    assert "has pooling auto, not mean: choose another place" in pooled["error"][0]


def test_two_models_of_one_name_and_what_is_no_model(tmp_path):
    pairs = [("a", small_network(0)), ("a", small_network(1)), ("b", "resnet18"), ("c", lambda: 3)]
    table = cp.signatures(pairs, image_batches(), tmp_path)
    assert table["state"].tolist() == ["made", "failed", "failed", "failed"]
    assert table["error"][1] == "ValueError: there are two models called 'a'"
    assert table["error"][2].startswith("TypeError")


def test_wrong_calls_are_errors_at_once(tmp_path):
    with pytest.raises(TypeError, match=r"no option 'layer'\. Did you mean 'layers'"):
        cp.signatures(loaders(), image_batches(), tmp_path, layer="0")
    with pytest.raises(ValueError, match="`form` must be"):
        cp.signatures(loaders(), image_batches(), tmp_path, form="small")
    with pytest.raises(TypeError, match=r"must be a mapping or pairs \(name, model\)"):
        cp.signatures([small_network(0)], image_batches(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed")
def test_on_a_dask_cluster_of_two_processes(tmp_path):
    distributed = pytest.importorskip("distributed")
    threads = torch.get_num_threads()
    settings = {"processes": True, "n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster):
        atlas = cp.Atlas(tmp_path / "atlas", sketch=cp.Sketch(128))
        with joblib.parallel_config("dask"):
            table = cp.signatures(loaders(4), image_batches(), atlas, form=cp.Sketch(128))
    assert table["state"].tolist() == ["made", "failed", "made", "made"]
    own = cp.signature(small_network(2), image_batches(), form=cp.Sketch(128), progress=False)
    np.testing.assert_array_equal(atlas.signature("net2").vectors, own.vectors)
    assert torch.get_num_threads() == threads
