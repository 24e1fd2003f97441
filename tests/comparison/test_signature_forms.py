"""Half and sketched signatures: their error is the stated one, and their files are checked."""

import json

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.comparison.signature_files import header_of
from cka_probe.comparison.signature_vectors import from_vectors, sketched, vectors_of

SIZES = (16, 20, 12, 9)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 3, 6, 6, generator=generator) for n in SIZES]


@pytest.fixture(scope="module", params=["unbiased", "biased"])
def exact(request):
    return [
        cp.signature(small_network(s), batches(), name=f"net{s}", estimator=request.param, progress=False)
        for s in (0, 1)
    ]


def test_vectors_have_the_cosines_of_compare(exact):
    x, y = exact
    values = cp.compare_signatures(x, y).values
    np.testing.assert_allclose(vectors_of(x) @ vectors_of(y).T, values, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors_of(x), axis=1), 1, atol=1e-6)


def test_a_signature_from_its_vectors_gives_the_same_result(exact):
    x, y = exact
    direct = cp.compare_signatures(x, y)
    again = cp.compare_signatures(*(from_vectors(vectors_of(one), header_of(one)) for one in (x, y)))
    for what in ("values", "standard_error", "chance"):
        np.testing.assert_allclose(getattr(again, what), getattr(direct, what), atol=1e-6)
    if direct.p_value is not None:
        np.testing.assert_allclose(again.p_value, direct.p_value, atol=1e-6)
    assert again.notes == direct.notes


def test_half_signatures_are_half_as_large_and_nearly_equal(exact, tmp_path):
    x, y = (one.half() for one in exact)
    assert {gram.dtype for gram in x.grams} == {np.dtype(np.float16)}
    np.testing.assert_allclose(
        cp.compare_signatures(x, y).values, cp.compare_signatures(*exact).values, atol=5e-5, rtol=0
    )
    x.save(tmp_path / "x.npz")
    loaded = cp.load_signature(tmp_path / "x.npz")
    np.testing.assert_array_equal(cp.compare_signatures(loaded, y).values, cp.compare_signatures(x, y).values)
    exact[0].save(tmp_path / "exact.npz")
    assert (tmp_path / "x.npz").stat().st_size < 0.75 * (tmp_path / "exact.npz").stat().st_size


def test_far_samples_and_tiny_layers_survive_half_precision():
    """Entries of a Gram matrix far apart, and activations of 1e-10: float16 alone would lose both."""
    data = [torch.randn(64, 6, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    data[0][0] *= 300

    class Tiny(nn.Module):
        def forward(self, x):
            return x * 1e-10

    net = nn.Sequential(nn.Linear(6, 4), Tiny())
    full, half = (cp.signature(net, data, form=form, progress=False) for form in ("exact", "half"))
    np.testing.assert_allclose(
        cp.compare_signatures(half, half).values, cp.compare_signatures(full, full).values, atol=1e-5
    )


def test_the_stated_error_of_a_sketch_is_its_error(exact):
    """Over many seeds, for each pair of layers whose vectors no few entries dominate."""
    x, y = exact
    truth = cp.compare_signatures(x, y)
    found = [
        cp.compare_signatures(sketched(x, cp.Sketch(256, seed)), sketched(y, cp.Sketch(256, seed)))
        for seed in range(300)
    ]
    errors = np.stack([one.values for one in found]) - truth.values
    stated = (1 - truth.values**2) / 16
    ratio = np.sqrt(np.mean(errors**2, axis=0)) / stated
    assert np.sqrt(np.mean(ratio**2)) == pytest.approx(1, abs=0.1)
    assert (np.abs(errors.mean(axis=0)) < 4.5 * stated / np.sqrt(300) + 1e-3).all()
    covered = np.mean([np.abs(one.values - truth.values) <= 1.96 * one.standard_error for one in found])
    assert 0.92 <= covered <= 0.98


def test_a_sketch_while_the_data_stream_is_that_of_the_signature(exact):
    estimator = exact[0].estimator
    direct = cp.signature(
        small_network(0), batches(), name="net0", estimator=estimator, form=cp.Sketch(128, seed=7), progress=False
    )
    later = sketched(exact[0], cp.Sketch(128, seed=7))
    np.testing.assert_allclose(direct.vectors, later.vectors, atol=1e-3)
    assert header_of(direct) == header_of(later)
    assert direct.vectors.dtype == np.float16


def test_the_same_layer_is_one_and_a_matrix_with_itself_symmetric(exact):
    x = sketched(exact[0], cp.Sketch(256))
    result = cp.compare_signatures(x, x)
    np.testing.assert_allclose(np.diag(result.values), 1, atol=1e-12)
    np.testing.assert_allclose(result.values, result.values.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(result.standard_error), 0, atol=1e-9)


def test_few_samples_are_kept_exactly():
    data = image_batches(count=2, size=12)  # 132 entries
    nets = [cp.signature(small_network(s), data, form="sketch", progress=False) for s in (0, 1)]
    assert nets[0].exact
    assert nets[0].largest_error == 0
    assert nets[0].vectors.shape == (5, 132)
    result = cp.compare_signatures(*nets)
    direct = cp.compare(small_network(0), small_network(1), data, progress=False)
    np.testing.assert_allclose(result.values, direct.values, atol=1e-4)  # rounded to float16
    assert result.standard_error is None
    assert not any("sketch" in note for note in result.notes)


def test_the_result_says_that_it_comes_from_sketches(exact):
    x, y = (sketched(one, cp.Sketch(256)) for one in exact)
    result = cp.compare_signatures(x, y)
    assert any("sketches of 256 numbers" in note and "at most 0.062" in note for note in result.notes)
    assert result.meta["sketch"] == {"size": 256, "seed": 0}
    assert result.p_value is None


def test_an_exact_signature_is_sketched_like_the_other(exact):
    x = sketched(exact[0], cp.Sketch(256, seed=2))
    mixed = cp.compare_signatures(x, exact[1]).values
    np.testing.assert_array_equal(mixed, cp.compare_signatures(x, sketched(exact[1], cp.Sketch(256, seed=2))).values)
    np.testing.assert_allclose(cp.compare_signatures(exact[1], x).values, mixed.T, atol=1e-12)


def test_sketches_of_another_seed_or_size_are_an_error(exact):
    x = sketched(exact[0], cp.Sketch(256))
    for other in (cp.Sketch(256, seed=1), cp.Sketch(128)):
        with pytest.raises(ValueError, match=r"'net1' has size=\d+ and seed=\d, not size=256 and seed=0"):
            cp.compare_signatures(x, sketched(exact[1], other))


def test_dead_layers_are_undefined_with_a_note():
    nets = small_network(0), small_network(1)
    with torch.no_grad():
        nets[1][4].weight.zero_()
    x, y = (
        cp.signature(net, batches(), name=f"n{i}", form=cp.Sketch(128), progress=False) for i, net in enumerate(nets)
    )
    result = cp.compare_signatures(x, y)
    assert np.isnan(result.values[:, -1]).all()
    assert np.isfinite(result.values[:, :-1]).all()
    assert any("n1: '4' is constant over the samples of every batch" in note for note in result.notes)


@pytest.mark.parametrize("form", ["sketches", "float64", ""])
def test_unknown_forms_are_errors(form):
    with pytest.raises(ValueError, match='`form` must be "exact", "half", "sketch" or a Sketch'):
        cp.signature(small_network(0), batches(), form=form, progress=False)
    with pytest.raises(TypeError, match="`form` must be"):
        cp.signature(small_network(0), batches(), form=4096, progress=False)


class TestFiles:
    @pytest.fixture
    def sketch(self, exact):
        return sketched(exact[0], cp.Sketch(128))

    def test_round_trip(self, sketch, tmp_path):
        sketch.save(tmp_path / "x.npz")
        for loaded in (cp.load_signature(tmp_path / "x.npz"), cp.SketchedSignature.load(tmp_path / "x.npz")):
            np.testing.assert_array_equal(loaded.vectors, sketch.vectors)
            assert header_of(loaded) == header_of(sketch)
            assert (loaded.size, loaded.seed) == (128, 0)
        with np.load(tmp_path / "x.npz") as archive:
            assert json.loads(str(archive["header"]))["largest_error"] == pytest.approx(128**-0.5)

    def test_each_class_reads_its_own_files(self, exact, sketch, tmp_path):
        exact[0].save(tmp_path / "exact.npz")
        sketch.save(tmp_path / "sketch.npz")
        with pytest.raises(ValueError, match=r"is a sketch of a signature\. Read it with"):
            cp.Signature.load(tmp_path / "sketch.npz")
        with pytest.raises(ValueError, match="holds the signature itself"):
            cp.SketchedSignature.load(tmp_path / "exact.npz")
        with pytest.raises(ValueError, match=r"saved as \.npz"):
            sketch.save(tmp_path / "x.pt")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layers": ["0", "1", "2", "3"]}, r"shape \(5, 128\), but its header gives \(4, 128\)"),
            ({"size": 64}, r"header gives \(5, 64\)"),
            ({"size": -1}, "no positive integers"),
            ({"size": 128.0}, "no positive integers"),
            ({"seed": "0"}, "no positive integers"),
            ({"kernel": "Linear().__class__"}, "kernel"),
            ({"estimator": "best"}, "estimator"),
            ({"samples": [16, -3]}, "no positive integers"),
            ({"samples": [True]}, "no positive integers"),
            ({"name": 3}, "no texts"),
            ({"notes": "all"}, "notes are no texts"),
            ({"layers": ["0", "0", "2", "3", "4"]}, "names a layer twice"),
            ({"undefined": ["0"]}, "reasons"),
            ({"format": "cka_probe.other"}, "its format is 'cka_probe.other'"),
        ],
    )
    def test_headers_of_strangers_are_checked(self, sketch, tmp_path, changes, message):
        sketch.save(tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as archive:
            header = json.loads(str(archive["header"])) | changes
        np.savez(tmp_path / "x.npz", header=np.array(json.dumps(header)), vectors=sketch.vectors)
        with pytest.raises(ValueError, match=rf"x\.npz is not a signature.*{message}"):
            cp.load_signature(tmp_path / "x.npz")

    @pytest.mark.parametrize(
        ("vectors", "message"),
        [
            (np.full((5, 128), np.nan, np.float16), "NaN or infinity"),
            (np.ones((5, 128), np.int64), "no floating numbers"),
            (np.array([[None] * 128] * 5), "Python objects"),
        ],
    )
    def test_arrays_of_strangers_are_checked(self, sketch, tmp_path, vectors, message):
        sketch.save(tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as archive:
            header = archive["header"]
        np.savez(tmp_path / "x.npz", header=header, vectors=vectors)
        with pytest.raises(ValueError, match=message):
            cp.load_signature(tmp_path / "x.npz")

    def test_a_file_cut_short_is_an_error(self, sketch, tmp_path):
        sketch.save(tmp_path / "x.npz")
        content = (tmp_path / "x.npz").read_bytes()
        (tmp_path / "x.npz").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is not a signature"):
            cp.load_signature(tmp_path / "x.npz")
