"""Signatures give the result of compare, survive saving, and refuse what cannot be compared."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp


@pytest.fixture(scope="module")
def signatures():
    data = [*image_batches(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9))]
    return data, *(cp.signature(small_network(s), data, name=f"net{s}", progress=False) for s in (0, 1))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_two_signatures_give_the_result_of_compare(estimator):
    data, (x, y) = image_batches(), (small_network(0), small_network(1))
    direct = cp.compare(x, y, data, estimator=estimator, progress=False)
    left, right = (cp.signature(net, data, estimator=estimator, progress=False) for net in (x, y))
    later = cp.compare_signatures(left, right)
    np.testing.assert_allclose(later.values, direct.values, atol=1e-7)
    np.testing.assert_allclose(later.standard_error, direct.standard_error, atol=1e-7)
    np.testing.assert_allclose(later.chance, direct.chance, atol=1e-7)
    assert later.rows == direct.rows
    assert later.columns == direct.columns


def test_saved_and_loaded_without_pickle(signatures, tmp_path):
    _, x, y = signatures
    x.save(tmp_path / "x.npz")
    loaded = cp.Signature.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(cp.compare_signatures(loaded, y).values, cp.compare_signatures(x, y).values)
    assert loaded.notes == x.notes
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npz"]


def test_a_signature_with_itself_is_one_on_the_diagonal(signatures):
    _, x, _ = signatures
    np.testing.assert_allclose(np.diag(cp.compare_signatures(x, x).values), 1, atol=1e-12)


def test_a_constant_layer_of_either_signature_gives_a_note():
    nets = small_network(0), small_network(1)
    with torch.no_grad():
        nets[1][4].weight.zero_()
    x, y = (cp.signature(net, image_batches(), progress=False) for net in nets)  # both are called Sequential
    for pair in ((x, y), (y, x), (y, y)):
        notes = [note for note in cp.compare_signatures(*pair).notes if "constant" in note]
        assert notes == [
            "Sequential: '4' is constant over the samples of every batch, so its similarity is undefined",
        ]


def test_signatures_of_another_order_are_an_error(signatures):
    data, x, _ = signatures
    shuffled = cp.signature(small_network(1), data[::-1], progress=False)
    with pytest.raises(ValueError, match="differ in their samples, their order or their batch size"):
        cp.compare_signatures(x, shuffled)


def test_signatures_of_other_settings_are_an_error(signatures):
    data, x, _ = signatures
    rbf = cp.signature(small_network(1), data, kernel=cp.RBF(), progress=False)
    with pytest.raises(ValueError, match=re.escape("kernel Linear() of 'net0' and RBF(")):
        cp.compare_signatures(x, rbf)


def test_files_that_are_not_signatures_are_an_error(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", values=np.eye(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a signature"):
            cp.Signature.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*missing\.npz"):
        cp.Signature.load(tmp_path / "missing.npz")


def test_a_failed_save_leaves_the_old_file(signatures, tmp_path, monkeypatch):
    _, x, _ = signatures
    x.save(tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()

    def full_disk(*_args, **_arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="the disk is full"):
        x.save(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npz"]
    with pytest.raises(ValueError, match=r"saved as \.npz"):
        x.save(tmp_path / "x.pt")


class TestNotes:
    def test_sorted_data_and_rounding_are_noted(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        data = [torch.randn(20, 6, generator=generator) + 3 * (i // 3) for i in range(6)]

        class Collapsed(nn.Module):
            def forward(self, x):
                return x * 1e-8 + 1

        kept = cp.signature(nn.Sequential(nn.Linear(6, 4), Collapsed()), data, name="net", progress=False)
        kept.save(tmp_path / "net.npz")
        notes = cp.compare_signatures(kept, cp.Signature.load(tmp_path / "net.npz")).notes
        assert any("net: the spread of '1' is so small beside the mean" in note for note in notes)
        assert any("as in data sorted by class" in note for note in notes)
        assert not any("net: net:" in note for note in notes)

    def test_one_hot_features_are_not_called_constant(self, tmp_path):
        data = [torch.eye(6)[torch.randperm(6)] for _ in range(3)]
        kept = cp.signature(nn.Sequential(nn.Identity()), data, name="net", progress=False)
        kept.save(tmp_path / "net.npz")
        (note,) = cp.compare_signatures(cp.Signature.load(tmp_path / "net.npz"), kept).notes
        assert note.startswith("net: '0' is not constant, but all pairs of its samples are equally similar")


def test_a_signature_says_what_it_holds(signatures):
    _, net0, _ = signatures
    assert re.fullmatch(
        r"<Signature of net0: \d+ layers \(0, \.\.\., \w+\); \d+ samples in \d+ minibatches; kernel Linear\(\), "
        r"unbiased, pooling \w+; [\d.]+ KiB(; \d notes?)?>",
        repr(net0),
    )
    assert f"{sum(net0.samples)} samples in {len(net0.samples)} minibatches" in repr(net0)
    assert "\x1b" not in repr(replace(net0, name="red\x1b[31m"))
