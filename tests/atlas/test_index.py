"""The index finds the nearest layers, follows the files of the atlas, and its own files are read safely."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from small_networks import image_batches, small_network

import cka_probe as cp
from cka_probe.atlas import index, search
from cka_probe.atlas.index import LayerIndex
from cka_probe.comparison.signature_files import SketchedSignature

pytest.importorskip("faiss")
MODELS, LAYERS, SIZE = 60, 10, 256


@pytest.fixture(scope="module")
def sketches():
    """Signatures of made-up models: layer vectors that wander from a common one."""
    real = cp.signature(small_network(0), image_batches(), form=cp.Sketch(SIZE), progress=False)
    rng = np.random.default_rng(0)
    found = []
    for model in range(MODELS):
        steps = rng.normal(size=(LAYERS, SIZE)).cumsum(axis=0) + rng.normal(size=SIZE)
        vectors = steps / np.linalg.norm(steps, axis=1)[:, None]
        if model == 7:
            vectors[3] = 0  # a dead layer
        about = {**vars(real), "name": f"m{model}", "layers": tuple(f"l{i}" for i in range(LAYERS)), "undefined": {}}
        found.append(SketchedSignature(**about | {"vectors": vectors.astype(np.float16)}))
    return found


@pytest.fixture
def atlas(sketches, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "EXACT", 100)
    atlas = cp.Atlas(tmp_path / "atlas", sketch=cp.Sketch(SIZE))
    for one in sketches:
        atlas.add(one)
    return atlas


def by_force(sketches, model: int, layer: int, count: int) -> list[tuple[str, str]]:
    query = sketches[model].vectors[layer].astype(float)
    rows = [
        (float(query @ v / np.linalg.norm(query) / np.linalg.norm(v)), one.name, name)
        for one in sketches
        if one.name != f"m{model}"
        for name, v in zip(one.layers, one.vectors.astype(float), strict=True)
        if v.any()
    ]
    return [(name, layer) for _, name, layer in sorted(rows, reverse=True)[:count]]


def pairs(table) -> list[tuple[str, str]]:
    return list(zip(table["model"], table["layer"], strict=True))


def test_it_finds_what_brute_force_finds(atlas, sketches):
    found = [
        pairs(atlas.nearest((f"m{model}", f"l{layer}"), 3)) == by_force(sketches, model, layer, 3)
        for model in range(0, MODELS, 3)
        for layer in (0, 4, 9)
    ]
    assert np.mean(found) > 0.95
    assert (atlas.folder / "cache" / "current").is_file()


def test_own_layers_count_if_asked(atlas):
    table = atlas.nearest(("m3", "l5"), 30, own=True)
    assert ("m3", "l5") not in pairs(table)
    assert {"l4", "l6"} <= set(table[table["model"] == "m3"]["layer"])
    assert "m3" not in set(atlas.nearest(("m3", "l5"), 30)["model"])


def test_dead_layers_are_not_found(atlas):
    assert ("m7", "l3") not in pairs(atlas.nearest(("m7", "l2"), 700, own=True))


def test_an_atlas_opened_again_reads_no_file_of_the_index_models(atlas, sketches, monkeypatch):
    before = pairs(atlas.nearest(("m1", "l1"), 5))
    again = cp.Atlas(atlas.folder)
    monkeypatch.setattr(again._store, "sketch_of", lambda entry: pytest.fail(f"read {entry.name}"))
    assert (
        pairs(
            again._shelf.table(
                again._shelf.nearest(
                    sketches[1].vectors[1], 5, list(again._entries.values()), without=again._entries["m1"]
                ),
                None,
            )
        )
        == before
    )
    monkeypatch.setattr(again._store, "entry", lambda *_: pytest.fail("read a header"))
    again.refresh()


def test_models_that_come_go_and_change_are_followed(atlas, sketches):
    first = by_force(sketches, 2, 2, 1)[0][0]
    assert atlas.nearest(("m2", "l2"), 1)["model"].tolist() == [first]
    atlas.remove(first)
    assert first not in set(atlas.nearest(("m2", "l2"), 50)["model"])
    copy = SketchedSignature(**{**vars(sketches[2]), "name": "copy"})
    atlas.add(copy)
    assert pairs(atlas.nearest(("m2", "l2"), 1)) == [("copy", "l2")]
    changed = SketchedSignature(**{**vars(sketches[9]), "name": "copy"})
    atlas.add(changed, overwrite=True)
    assert pairs(atlas.nearest(("m9", "l2"), 1)) == [("copy", "l2")]
    assert cp.Atlas(atlas.folder).nearest(("m9", "l2"), 1)["model"].tolist() == ["copy"]


@pytest.mark.parametrize("harm", ["text", "cells", "centres", "names", "objects", "folder", "escape"])
def test_a_damaged_index_is_built_again(atlas, harm):
    before = pairs(atlas.nearest(("m1", "l1"), 5))
    cache = atlas.folder / "cache"
    folder = cache / (cache / "current").read_text()
    if harm == "text":
        (folder / "catalogue.json").write_text("[" * 5000)
    elif harm == "cells":
        np.save(folder / "cells.npy", np.full(MODELS * LAYERS, 10**6, np.int32))
    elif harm == "centres":
        np.save(folder / "centres.npy", np.zeros((3, 2), np.float32))
    elif harm == "names":
        catalogue = json.loads((folder / "catalogue.json").read_text())
        (folder / "catalogue.json").write_text(json.dumps(catalogue[1:]))
    elif harm == "objects":
        np.save(folder / "coarse.npy", np.array([None]), allow_pickle=True)
    elif harm == "folder":
        shutil.rmtree(folder)
    else:
        (cache / "current").write_text("../../elsewhere")
    again = cp.Atlas(atlas.folder)
    assert LayerIndex.open(again._store) is None
    assert pairs(again.nearest(("m1", "l1"), 5)) == before
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [(cache / "current").read_text()]


@pytest.mark.parametrize("when", ["while it is built", "when it is finished"])
def test_two_processes_build_at_the_same_time(atlas, monkeypatch, when):
    other = cp.Atlas(atlas.folder)
    part = "_cells" if when == "while it is built" else "atomic_write"
    found, own = [], getattr(index, part)

    def and_the_other_too(*arguments):
        monkeypatch.setattr(index, part, own)
        found.append(pairs(other.nearest(("m1", "l1"), 5)))
        return own(*arguments)

    monkeypatch.setattr(index, part, and_the_other_too)
    found.append(pairs(atlas.nearest(("m1", "l1"), 5)))
    assert len(found) == 2
    assert found[0] == found[1]
    assert pairs(cp.Atlas(atlas.folder).nearest(("m1", "l1"), 5)) == found[0]


def test_what_a_crash_left_of_an_index_goes_after_a_day(atlas):
    for name, age in (("fresh", 60), ("crashed", 2 * 86_400)):
        folder = atlas.folder / "cache" / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    atlas.nearest(("m1", "l1"), 5)
    cache = atlas.folder / "cache"
    assert {path.name for path in cache.iterdir()} == {"fresh", "current", (cache / "current").read_text()}


def test_without_faiss_all_layers_are_compared(atlas, sketches, monkeypatch):
    monkeypatch.setattr("cka_probe.atlas.index.find_spec", lambda _: None)
    assert pairs(atlas.nearest(("m1", "l1"), 5)) == by_force(sketches, 1, 1, 5)
    assert not (atlas.folder / "cache").exists()
