"""The folder of an atlas: opened again, shared by processes, and read safely."""

import json
import os

import numpy as np
import pytest
from quick_processes import CONTEXT
from small_networks import image_batches, small_network

import cka_probe as cp
from cka_probe.atlas.store import Store, model_stem

SKETCH = cp.Sketch(128)


def signature_of(seed: int, name: str | None = None) -> cp.Signature:
    return cp.signature(small_network(seed), image_batches(), name=name or f"net{seed}", progress=False)


@pytest.fixture
def folder(tmp_path):
    atlas = cp.Atlas(tmp_path / "atlas", sketch=SKETCH)
    for seed in (0, 1):
        atlas.add(signature_of(seed), metadata={"seed": seed}, exact=seed == 0)
    return tmp_path / "atlas"


def change_header(path, **changes) -> None:
    with np.load(path) as archive:
        header, vectors = json.loads(str(archive["header"])) | changes, archive["vectors"]
    np.savez(path, header=np.array(json.dumps(header)), vectors=vectors)


def model_file(folder, name: str):
    return folder / "models" / f"{model_stem(name)}.npz"


def test_an_atlas_is_found_again(folder):
    before = cp.Atlas(folder).similarity("net0", "net1")
    atlas = cp.Atlas(folder)
    assert atlas.models == ("net0", "net1")
    assert atlas.sketch == SKETCH
    assert atlas.to_frame()["seed"].tolist() == [0, 1]
    np.testing.assert_array_equal(atlas.similarity("net0", "net1").values, before.values)


def test_its_files_are_sketches_of_their_own(folder):
    found = cp.load_signature(model_file(folder, "net1"))
    assert isinstance(found, cp.SketchedSignature)
    assert found.name == "net1"


@pytest.mark.parametrize(
    "name", ["a/b", "../../up", "", ".", "ä ö", "A" * 300, "nul", "a\nb", "*", "net0.npz", "a\\b", "-x"]
)
def test_any_name_is_a_name(folder, name):
    atlas = cp.Atlas(folder)
    signature = signature_of(3, "other")
    atlas.add(cp.Signature(**{**vars(signature), "name": name}))
    again = cp.Atlas(folder)
    assert name in again
    assert again.similarity(name, "net0").shape == (5, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["atlas.json", "exact", "models"]


def test_names_that_differ_in_one_sign_have_files_of_their_own():
    names = ["a/b", "a-b", "a b", "A-B", "a.b", "x" * 200 + "1", "x" * 200 + "2"]
    assert len({model_stem(name).lower() for name in names}) == len(names)


def test_what_others_add_and_remove_is_seen_after_a_refresh(folder):
    mine, theirs = cp.Atlas(folder), cp.Atlas(folder)
    theirs.add(signature_of(2))
    theirs.remove("net1")
    theirs.add(signature_of(5, "net0"), overwrite=True)
    assert mine.models == ("net0", "net1")
    mine.refresh()
    assert mine.models == ("net0", "net2")
    assert mine.similarity("net0", signature_of(5))["1", "1"] == pytest.approx(1, abs=1e-6)
    assert mine.nearest((signature_of(5), "4"), 1)["model"].tolist() == ["net0"]


def _add_many(folder, seed, rounds):
    mine, both = signature_of(seed), signature_of(seed, "both")
    for _ in range(rounds):
        atlas = cp.Atlas(folder, sketch=SKETCH)
        for signature in (mine, both):
            atlas.add(signature, overwrite=True)
        atlas.refresh()
        if "both" in atlas:
            atlas.remove("both")


@pytest.mark.parametrize("rounds", [1, 12])
def test_several_processes_add_and_remove_at_the_same_time(tmp_path, rounds):
    jobs = [CONTEXT.Process(target=_add_many, args=(tmp_path / "shared", seed, rounds)) for seed in (0, 1)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    assert {"net0", "net1"} <= set(cp.Atlas(tmp_path / "shared").models)


def test_another_process_that_makes_the_same_atlas_at_this_moment(tmp_path, monkeypatch):
    (tmp_path / ".atlas.json.17.abcd.tmp").touch()
    cp.Atlas(tmp_path, sketch=SKETCH)
    listed = os.scandir

    def listed_later(folder):
        monkeypatch.undo()
        cp.Atlas(folder, sketch=SKETCH).add(signature_of(0))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", listed_later)
    assert cp.Atlas(tmp_path / "late").models == ("net0",)
    monkeypatch.setattr(os, "scandir", listed_later)
    with pytest.raises(ValueError, match="was made with"):
        cp.Atlas(tmp_path / "other", sketch=cp.Sketch(64))


def test_a_model_that_goes_while_the_folder_is_read(folder, monkeypatch):
    stamps = Store.stamps

    def and_then_removed(store):
        found = stamps(store)
        model_file(folder, "net0").unlink()
        return found

    monkeypatch.setattr(Store, "stamps", and_then_removed)
    assert cp.Atlas(folder).models == ("net1",)


class TestRefused:
    def test_another_sketch(self, folder):
        with pytest.raises(ValueError, match=r"made with Sketch\(size=128, seed=0\), not Sketch\(size=4096, seed=0\)"):
            cp.Atlas(folder, sketch=cp.Sketch())

    def test_folders_of_other_things(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="holds other files and no atlas"):
            cp.Atlas(tmp_path)
        with pytest.raises(NotADirectoryError, match="is a file"):
            cp.Atlas(tmp_path / "notes.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"format": "x"}', '{"format": "cka_probe.atlas", "version": 1, "size": "9"}', "[" * 9999],
    )
    def test_a_damaged_description(self, folder, text):
        (folder / "atlas.json").write_text(text)
        with pytest.raises(ValueError, match="does not describe an atlas, or is damaged"):
            cp.Atlas(folder)

    def test_a_newer_version(self, folder):
        (folder / "atlas.json").write_text('{"format": "cka_probe.atlas", "version": 2, "size": 128, "seed": 0}')
        with pytest.raises(ValueError, match="its version is 2; update cka_probe"):
            cp.Atlas(folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"metadata": {"a": [1]}}, "must map texts to texts"),
            ({"metadata": []}, "must be a dict"),
            ({"size": 64}, "size=64 and seed=0"),
            ({"name": "other"}, "is called 'other', to which another file belongs"),
            ({"format": "x"}, "its format is 'x'"),
            ({"layers": 3}, "layers are no texts"),
        ],
    )
    def test_files_of_strangers(self, folder, changes, message):
        change_header(model_file(folder, "net1"), **changes)
        with pytest.raises(ValueError, match=f"is no model of this atlas, or is damaged: .*{message}"):
            cp.Atlas(folder)

    def test_a_file_of_other_samples(self, folder):
        change_header(model_file(folder, "net1"), order="0" * 32)
        with pytest.raises(ValueError, match="The file of 'net1' comes from other samples"):
            cp.Atlas(folder)

    def test_a_file_cut_short(self, folder):
        path = model_file(folder, "net1")
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(ValueError, match="is no model of this atlas"):
            cp.Atlas(folder)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones((5, 3)), r"float64 numbers of shape \(5, 3\)"),
            (np.ones((5, 396), np.int64), "int64 numbers"),
            (np.array([[None]]), "Python objects"),
        ],
    )
    def test_exact_vectors_of_another_kind(self, folder, array, message):
        np.save(folder / "exact" / f"{model_stem('net0')}.npy", array)
        with pytest.raises(ValueError, match=f"does not hold the exact vectors of 'net0': .*{message}"):
            cp.Atlas(folder).similarity("net0", "net0")
