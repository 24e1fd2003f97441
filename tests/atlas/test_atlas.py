"""An atlas gives the values of its signatures, finds the nearest layers, and refuses what cannot be compared."""

import re

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp
from cka_probe.estimators.model_distances import MODEL_DISTANCES, angles

SEEDS = range(5)
SKETCH = cp.Sketch(128)


def signature_of(seed: int, **options) -> cp.Signature:
    return cp.signature(small_network(seed), image_batches(), name=f"net{seed}", progress=False, **options)


@pytest.fixture(scope="module")
def signatures():
    return [signature_of(seed) for seed in SEEDS]


@pytest.fixture
def atlas(signatures, tmp_path):
    atlas = cp.Atlas(tmp_path / "atlas", sketch=SKETCH)
    for seed, signature in enumerate(signatures):
        atlas.add(signature, metadata={"seed": seed, "kind": "small"}, exact=seed < 3)
    return atlas


class TestValues:
    def test_models_with_gram_matrices_are_compared_exactly(self, atlas, signatures):
        found = atlas.similarity("net0", "net1")
        direct = cp.compare_signatures(signatures[0], signatures[1])
        for what in ("values", "standard_error", "p_value"):
            np.testing.assert_allclose(getattr(found, what), getattr(direct, what), atol=1e-6)
        assert found.rows == direct.rows
        assert found.meta["model_x"] == "net0"

    def test_others_by_their_sketches(self, atlas, signatures):
        found = atlas.similarity("net0", "net4")
        truth = cp.compare_signatures(signatures[0], signatures[4]).values
        assert (np.abs(found.values - truth) < 5 * (1 - truth**2) / np.sqrt(128)).all()
        assert any("sketches of 128 numbers" in note for note in found.notes)

    def test_a_signature_need_not_be_in_the_atlas(self, atlas):
        mine = signature_of(9)
        direct = cp.compare_signatures(mine, signature_of(1))
        np.testing.assert_allclose(atlas.similarity(mine, "net1").values, direct.values, atol=1e-6)
        sketch = atlas.similarity("net4", mine)
        assert any("sketches" in note for note in sketch.notes)

    def test_a_model_with_itself(self, atlas):
        for model in ("net0", "net4"):
            result = atlas.similarity(model, model)
            np.testing.assert_allclose(np.diag(result.values), 1, atol=1e-6)

    def test_the_matrix_is_that_of_compare_many(self, atlas):
        nets = {f"net{seed}": small_network(seed) for seed in range(3)}
        direct = cp.compare_many(nets, image_batches(), progress=False)
        found = atlas.matrix(["net0", "net1", "net2"])
        assert (found.rows, found.row_models) == (direct.rows, direct.row_models)
        for what in ("values", "standard_error", "p_value"):
            np.testing.assert_allclose(getattr(found, what), getattr(direct, what), atol=1e-6)

    def test_the_matrix_of_all_comes_from_sketches(self, atlas):
        found = atlas.matrix()
        assert found.shape == (25, 25)
        np.testing.assert_array_equal(found.values, found.values.T)
        block = found.select(rows=("net3", "**"), columns=("net4", "**"))
        np.testing.assert_allclose(block.values, atlas.similarity("net3", "net4").values, atol=1e-6)

    def test_half_signatures_stay_half(self, tmp_path, signatures):
        atlas = cp.Atlas(tmp_path / "half", sketch=SKETCH)
        atlas.add(signatures[0].half())
        atlas.add(signatures[1])
        direct = cp.compare_signatures(signatures[0], signatures[1]).values
        np.testing.assert_allclose(atlas.similarity("net0", "net1").values, direct, atol=5e-5)
        sizes = [path.stat().st_size for path in sorted((tmp_path / "half" / "exact").iterdir())]
        assert sizes[0] < 0.6 * sizes[1]

    @pytest.mark.parametrize("kernel", [cp.RBF(), cp.Cosine()])
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    def test_other_kernels_and_estimators(self, tmp_path, kernel, estimator):
        atlas = cp.Atlas(tmp_path / "a", sketch=SKETCH)
        for seed in (0, 1):
            atlas.add(signature_of(seed, kernel=kernel, estimator=estimator))
        direct = cp.compare(
            small_network(0), small_network(1), image_batches(), kernel=kernel, estimator=estimator, progress=False
        )
        np.testing.assert_allclose(atlas.similarity("net0", "net1").values, direct.values, atol=1e-6)
        np.testing.assert_allclose(atlas.similarity("net0", "net1").chance, direct.chance, atol=1e-6)


class TestNearest:
    def test_the_nearest_are_those_of_the_exact_values(self, atlas, signatures):
        """Exact models only, so that the answer is known."""
        for model in ("net3", "net4"):
            atlas.remove(model)
        for layer in signatures[0].layers:
            found = atlas.nearest(("net0", layer), 4)
            expected = [
                (f"net{other}", name, float(cp.compare_signatures(signatures[0], signatures[other])[layer, name]))
                for other in (1, 2)
                for name in signatures[other].layers
            ]
            expected.sort(key=lambda row: -row[2])
            np.testing.assert_allclose(found["similarity"], [row[2] for row in expected[:4]], atol=1e-6)
            assert found["exact"].all()
            assert (found["standard_error"] == 0).all()

    def test_values_of_sketches_have_their_error(self, atlas):
        found = atlas.nearest(("net0", "1"), 25)
        assert set(found["model"]) == {"net1", "net2", "net3", "net4"}
        assert found["similarity"].is_monotonic_decreasing
        by_sketch = found[~found["exact"]]
        assert set(by_sketch["model"]) == {"net3", "net4"}
        np.testing.assert_allclose(by_sketch["standard_error"], (1 - by_sketch["similarity"] ** 2) / np.sqrt(128))

    def test_a_layer_is_not_near_itself(self, atlas):
        found = atlas.nearest(("net4", "1"), 25, own=True)
        own = found[found["model"] == "net4"]
        assert sorted(own["layer"]) == ["0", "2", "3", "4"]
        assert len(found) == 24
        assert atlas.nearest(("net4", "2"), 1, own=True)["layer"].tolist() == ["3"]  # flattened: the same

    def test_a_signature_from_outside(self, atlas):
        mine = signature_of(1)
        found = atlas.nearest((mine, "4"), 1)
        assert found.iloc[0]["model"] == "net1"
        assert found.iloc[0]["layer"] == "4"
        assert found.iloc[0]["similarity"] == pytest.approx(1, abs=1e-6)
        sketch = cp.signature(small_network(1), image_batches(), name="mine", form=SKETCH, progress=False)
        assert atlas.nearest((sketch, "4"), 1).iloc[0]["model"] == "net1"

    def test_dead_layers_are_no_answer_and_no_question(self, atlas):
        dead = small_network(7)
        with torch.no_grad():
            dead[4].weight.zero_()
        atlas.add(cp.signature(dead, image_batches(), name="dead", progress=False))
        assert not ((found := atlas.nearest(("net0", "4"), 40))["model"].eq("dead") & found["layer"].eq("4")).any()
        with pytest.raises(ValueError, match="'4' of 'dead' is constant over the samples of every batch"):
            atlas.nearest(("dead", "4"))

    def test_wrong_questions_are_errors(self, atlas):
        with pytest.raises(KeyError, match=r"has no model 'net8'\. Did you mean"):
            atlas.nearest(("net8", "1"))
        with pytest.raises(KeyError, match=r"'net1' has no layer '11'. Did you mean '1'"):
            atlas.nearest(("net1", "11"))
        for layer in ("net1", ("net1",), ("net1", 1), None):
            with pytest.raises(TypeError, match="must be a pair"):
                atlas.nearest(layer)
        with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
            atlas.nearest(("net1", "1"), 0)
        with pytest.raises(TypeError, match=r"`k` must be an integer, got 2\.0"):
            atlas.nearest(("net1", "1"), 2.0)
        with pytest.raises(TypeError, match="by its name or by its signature, got int"):
            atlas.nearest((3, "1"))


class TestDistances:
    @pytest.mark.parametrize("how", MODEL_DISTANCES)
    def test_they_follow_from_the_matrix(self, atlas, how):
        for models in (["net0", "net1", "net2"], list(atlas.models)):
            found = atlas.distances(models, how=how)
            matrix = atlas.matrix(models)
            for i, a in enumerate(models):
                for j, b in enumerate(models):
                    block = matrix.select(rows=(a, "**"), columns=(b, "**")).values
                    expected = 0 if i == j else float(MODEL_DISTANCES[how](angles(block)))
                    assert found.values[i, j] == pytest.approx(expected, abs=1e-6)
            assert found.is_distance
            np.testing.assert_array_equal(found.values, found.values.T)

    def test_undefined_layers_are_left_out(self, atlas):
        class Constant(nn.Module):
            def forward(self, x):
                return torch.ones(len(x), 4)

        for name, net in (("constant", Constant()), ("partly", nn.Sequential(small_network(3), Constant()))):
            atlas.add(cp.signature(nn.Sequential(net), image_batches(), name=name, progress=False))
        table = atlas.distances().to_frame()
        assert table["constant"].isna().all()
        assert table.drop(index="constant")["partly"].notna().all()

    def test_an_unknown_distance_is_an_error(self, atlas):
        with pytest.raises(ValueError, match=r"There is no distance 'elastics'\. Did you mean 'elastic'"):
            atlas.distances(how="elastics")

    def test_choices_of_models(self, atlas, tmp_path):
        assert atlas.distances(["net3", "net1"]).rows == ("net3", "net1")
        with pytest.raises(TypeError, match="a list of names, got the text 'net1'"):
            atlas.distances("net1")
        with pytest.raises(ValueError, match="`models` is empty"):
            atlas.matrix([])
        with pytest.raises(ValueError, match="holds no model yet"):
            cp.Atlas(tmp_path / "empty").matrix()


class TestAdding:
    def test_what_cannot_be_compared_is_refused(self, atlas):
        others = {
            "comes from other samples": cp.signature(
                small_network(8), image_batches(seed=1), name="net8", progress=False
            ),
            "another batch size": cp.signature(small_network(8), image_batches(size=10), name="net8", progress=False),
            "the estimator biased": signature_of(8, estimator="biased"),
            re.escape("the kernel RBF("): signature_of(8, kernel=cp.RBF()),
        }
        for message, signature in others.items():
            for call in (lambda s=signature: atlas.add(s), lambda s=signature: atlas.nearest((s, "1"))):
                with pytest.raises(ValueError, match=f"The signature of 'net8'.*{message}.*'net0'"):
                    call()
        assert "net8" not in atlas
        assert len(cp.Atlas(atlas.folder)) == 5

    def test_a_sketch_of_another_kind_is_refused(self, atlas):
        for sketch in (cp.Sketch(256), cp.Sketch(128, seed=1)):
            with pytest.raises(ValueError, match="A sketch cannot be sketched anew"):
                atlas.add(signature_of(8, form=sketch))
        atlas.add(signature_of(8, form=SKETCH))
        assert "net8" in atlas

    def test_a_name_is_taken_once(self, atlas, signatures):
        with pytest.raises(ValueError, match=r"has a model called 'net0'\. Pass overwrite=True"):
            atlas.add(signatures[0])
        atlas.add(signatures[0], overwrite=True, exact=False, metadata={"new": True})
        assert len(atlas) == 5
        assert atlas.to_frame().loc["net0", "new"]
        assert not atlas.to_frame().loc["net0", "exact"]
        assert atlas.nearest(("net0", "1"), 3)["similarity"].notna().all()

    def test_the_only_model_may_be_replaced_by_one_of_other_samples(self, tmp_path, signatures):
        atlas = cp.Atlas(tmp_path / "one")
        atlas.add(signatures[0])
        other = cp.signature(small_network(0), image_batches(seed=5), name="net0", progress=False)
        atlas.add(other, overwrite=True)
        assert atlas.similarity("net0", other)["1", "1"] == pytest.approx(1, abs=1e-6)

    def test_wrong_arguments_are_errors(self, atlas, signatures):
        with pytest.raises(TypeError, match="must be a Signature or a SketchedSignature, got str"):
            atlas.add("net1.npz")
        with pytest.raises(TypeError, match="must map texts to texts, numbers, bools or None"):
            atlas.add(signatures[0], metadata={"layers": [1, 2]}, overwrite=True)
        with pytest.raises(TypeError, match="`metadata` must be a dict"):
            atlas.add(signatures[0], metadata="seed 1", overwrite=True)
        with pytest.raises(TypeError, match="`sketch` must be a Sketch"):
            cp.Atlas(atlas.folder, sketch=4096)

    def test_the_table_shows_models_and_metadata(self, atlas):
        table = atlas.to_frame()
        assert table.index.tolist() == [f"net{seed}" for seed in SEEDS]
        assert table["seed"].tolist() == list(SEEDS)
        assert table["exact"].tolist() == [True, True, True, False, False]
        assert (table["layers"] == 5).all()
        assert "5 models, 25 layers, sketches of 128 numbers, 3 models with Gram matrices" in repr(atlas)
        assert list(atlas) == list(atlas.models)
        assert atlas.layers("net0") == ("0", "1", "2", "3", "4")
