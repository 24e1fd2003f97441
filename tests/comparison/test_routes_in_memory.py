"""compare(scope="dataset") within a memory: passes over the data, features on the disk, refusals; all exact."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp
from cka_probe.comparison import dataset_pass, feature_blocks, held, route_choice
from cka_probe.comparison.memory import ForwardMeter
from cka_probe.estimators.dataset import data_size, layer_parts

LAYERS = ["0", "1", "2", "4"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Networks so small that a part of a layer, a slab and the noise of the meter would be all of the memory."""
    monkeypatch.setattr(ForwardMeter, "_used", lambda _: None)
    monkeypatch.setattr(layer_parts, "PART", 4000)
    monkeypatch.setattr(held, "SLAB", 4000)
    monkeypatch.setattr(feature_blocks, "PANEL", 64)


@pytest.fixture(scope="module")
def networks():
    return small_network(0, width=400), small_network(1, width=480)


@pytest.fixture(scope="module")
def data():
    return image_batches(5)


def over(networks, data, **options):
    options = {"layers": LAYERS, "scope": "dataset", "progress": False, **options}
    return cp.compare(*networks, data, **options)


@pytest.fixture(scope="module")
def exact(networks, data):
    return over(networks, data, memory="2GiB", route="grams")


def same(found, expected, atol=1e-9):
    assert_allclose(found.values, expected.values, atol=atol)
    assert_allclose(found.standard_error, expected.standard_error, atol=atol)
    # z at 1e-13 is 7, and 1e-6 of it is 5e-5 of the p-value.
    assert_allclose(found.p_value, expected.p_value, rtol=1e-6 if atol < 1e-6 else 5e-5)


class TestPasses:
    def test_some_layers_in_each(self, networks, data, exact):
        found = over(networks, data, memory="4MiB", route="grams")
        assert found.meta["route"] == "grams"
        assert found.meta["passes"] > 1
        assert found.meta["memory"] == "4 MiB"
        assert exact.meta["passes"] == 1
        same(found, exact)

    def test_a_layer_that_fits_in_no_pass_is_cut(self, networks, data, exact):
        found = over(networks, data, memory="1MiB", route="grams")
        assert found.meta["passes"] > 4
        same(found, exact)

    def test_the_note_and_the_progress_say_how_many(self, networks, data, capsys):
        found = over(networks, data, memory="4MiB", route="grams", progress=True)
        (note,) = [note for note in found.notes if note.startswith("route grams")]
        assert f"in each of {found.meta['passes']} passes" in note
        assert f"compare 2/{found.meta['passes']}" in capsys.readouterr().err

    def test_a_shuffled_loader_gives_the_same_order_in_each(self, networks, data, exact):
        images = torch.cat(data)
        for generator in (None, torch.Generator().manual_seed(4)):
            loader = DataLoader(TensorDataset(images), batch_size=10, shuffle=True, generator=generator)
            found = over(networks, loader, memory="4MiB", route="grams")
            assert found.meta["passes"] > 1
            same(found, exact, atol=1e-6)

    def test_random_augmentation_of_its_own_ends_in_one_pass(self, networks, data, monkeypatch):
        class Augmented:
            def __init__(self):
                self.rng, self.reads = np.random.default_rng(0), 0

            def __iter__(self):
                self.reads += 1
                for batch in data:
                    yield batch + float(self.rng.normal())

            def __len__(self):
                return len(data)

        # A disk so slow that several passes seem better.
        monkeypatch.setattr(route_choice, "Rates", partial(data_size.Rates, disk=1.0))
        monkeypatch.setattr(dataset_pass, "Rates", partial(data_size.Rates, disk=1.0))
        augmented = Augmented()
        found = over(networks, augmented, memory="4MiB")
        assert augmented.reads == 3
        assert found.meta["route"] == "disk"
        assert np.isfinite(found.values).all()
        assert any("gives other samples, or another order" in note for note in found.notes)

    def test_an_in_place_layer_after_a_kept_one(self, data):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(data[0][0].numel(), 3000), nn.ReLU(inplace=True), nn.Dropout())
        found = cp.compare(net, net, data, scope="dataset", memory="1MiB", route="grams", progress=False)
        expected = cp.compare(net, net, data, scope="dataset", memory="1GiB", route="blocks", progress=False)
        assert found.meta["passes"] > 1
        assert_allclose(found.values, expected.values, atol=1e-6)
        assert_allclose(found.values[:, 2], found.values[:, 3])

    def test_many_models(self, networks, data, exact):
        nets = dict(zip("ab", networks, strict=True))
        many = cp.compare_many(nets, data, layers=LAYERS, scope="dataset", memory="4MiB", route="grams", progress=False)
        assert many.meta["passes"] > 1
        assert_allclose(many.values[: len(LAYERS), len(LAYERS) :], exact.values, atol=1e-9)

    def test_a_layer_that_is_left_out_later(self, data):
        class Sometimes(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.extra, self.head = nn.Flatten(), nn.Tanh(), nn.Linear(data[0][0].numel(), 3000)
                self.calls = 0

            def forward(self, x):
                x = self.stem(x)
                if float(x.sum()) > float(data[0].sum()) - 1:
                    self.extra(x)
                return self.head(x)

        net = Sometimes()
        found = cp.compare(net, net, data, scope="dataset", memory="1MiB", route="grams", progress=False)
        assert found.rows in (("stem", "head"), ("stem", "extra", "head"))
        assert np.isfinite(found["stem", "head"])


class TestDisk:
    def test_features_beyond_the_memory_go_to_a_file(self, networks, data, exact, monkeypatch):
        written = []
        write = feature_blocks.FeatureFile.write
        monkeypatch.setattr(
            feature_blocks.FeatureFile, "write", lambda self, x: written.append((self.path, len(x))) or write(self, x)
        )
        found = over(networks, data, memory="1MiB", route="disk")
        assert found.meta["route"] == "disk"
        assert written
        assert not any(path.exists() for path, _ in written)
        same(found, exact)

    @pytest.mark.parametrize("kernel", [cp.RBF(), cp.Cosine()])
    def test_other_kernels(self, networks, data, kernel, monkeypatch):
        monkeypatch.setattr(layer_parts, "PART", 2**23)  # a kernel takes whole samples, here 6400 columns
        found = over(networks, data, memory="33MiB", route="disk", kernel=kernel)
        same(found, over(networks, data, memory="1GiB", route="grams", kernel=kernel), atol=1e-7)

    def test_a_generator_is_read_once(self, networks, data, exact):
        found = over(networks, (batch for batch in data), memory="8MiB", layers=LAYERS)
        assert found.meta["route"] == "disk"
        same(found, exact)

    def test_the_file_has_no_name_so_that_a_killed_process_leaves_none(self, networks, data, tmp_path, monkeypatch):
        monkeypatch.setattr(feature_blocks.tempfile, "tempdir", str(tmp_path))
        sizes, seen = [], []
        write = feature_blocks.FeatureFile.write
        monkeypatch.setattr(feature_blocks.FeatureFile, "write", lambda self, x: sizes.append(len(x)) or write(self, x))

        def broken():
            yield from data[:3]
            seen.extend(tmp_path.iterdir())
            raise RuntimeError("the disk of the data is gone")

        with pytest.raises(RuntimeError, match="the disk of the data is gone"):
            over(networks, broken(), memory="1MiB", route="disk")
        assert sizes
        assert bool(seen) == (os.name != "posix")
        assert list(tmp_path.iterdir()) == []

    def test_no_room_on_the_disk_is_said(self, networks, data, monkeypatch):
        monkeypatch.setattr(dataset_pass, "disk_room", lambda: 0)
        with pytest.raises(ValueError, match=r"route='disk' cannot be taken: .*has room for 0 MiB"):
            over(networks, data, memory="1MiB", route="disk")


class TestOneBatch:
    def test_gram_matrices_are_made_in_the_hooks(self, networks, data, exact):
        found = over(networks, torch.cat(data), memory="1MiB")
        assert found.meta["route"] == "grams"
        assert found.meta["passes"] == 1
        same(found, exact, atol=1e-6)

    def test_positions_as_samples_are_no_small_batch(self, networks, data):
        found = over(networks, data[0], layers="0", pooling="spatial")
        expected = over(networks, data[0], layers="0", pooling="spatial", route="moments")
        assert_allclose(found.values, expected.values, atol=1e-6)


class TestRefusals:
    def test_a_measure_that_needs_all_features(self, networks, data):
        with pytest.raises(ValueError, match=r"procrustes needs the features of all samples, .* Give more memory"):
            over(networks, data, measure="procrustes", memory="1MiB")

    def test_nothing_fits(self, networks, monkeypatch):
        monkeypatch.setattr(dataset_pass, "disk_room", lambda: 0)
        with pytest.raises(ValueError, match=r"No route over the whole data set fits.*moments:.*Give more memory"):
            over(networks, (batch for batch in image_batches(5)), kernel=cp.Cosine(), memory="1MiB")

    @pytest.mark.parametrize("memory", ["4 apples", "-1", 0, "10B", True, None.__class__])
    def test_sizes_that_are_none(self, networks, data, memory):
        with pytest.raises((ValueError, TypeError), match="`memory` must be"):
            over(networks, data, memory=memory)

    def test_options_of_the_other_scope(self, networks, data):
        with pytest.raises(ValueError, match='`memory` is for scope="dataset"'):
            over(networks, data, scope="minibatch", memory="1GiB")
        with pytest.raises(ValueError, match="`route` must be one of 'moments', 'grams'"):
            over(networks, data, route="fast")
