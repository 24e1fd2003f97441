"""Files from strangers: a ValueError within a second, and no memory for what a file only claims to hold."""

import io
import json
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.cli.inputs import load_arrays, load_data
from cka_probe.comparison.checkpoint import Checkpoint
from cka_probe.distill.models.weights import load_weights
from cka_probe.distill.recipes.recipe import Recipe
from cka_probe.distill.training.checkpoints import CheckpointError, load_checkpoint
from cka_probe.safe_read import open_npz, read_npy

MOST = 200 * 2**20


def refused(message, read, *arguments):
    """A ValueError within a second and 200 MB; timed without the trace of memory, which is seven times slower."""
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        read(*arguments)
    assert time.process_time() - started < 1
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read(*arguments)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def npy(shape, dtype="<f4", content=b"", order=False):
    """Bytes of an array whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": order, "shape": shape})
    return file.getvalue() + content


def write_npz(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


def text(value):
    """An entry with a JSON text, as numpy stores it."""
    file = io.BytesIO()
    np.save(file, np.array(value if isinstance(value, str) else json.dumps(value)))
    return file.getvalue()


def bomb(path, entry, megabytes):
    """An .npz file whose array of zeros is honest about its size, and a thousand times as large as the file."""
    size = megabytes * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head, block = npy((size // 4,)), bytes(2**20)
    checksum, packed = zlib.crc32(head), [packer.compress(head)]
    for _ in range(megabytes):
        checksum = zlib.crc32(block, checksum)
        packed.append(packer.compress(block))
    packed.append(packer.flush())
    content, name = b"".join(packed), f"{entry}.npy".encode()
    sizes = [(checksum, 4), (len(content), 4), (len(head) + size, 4), (len(name), 2)]
    fields = b"".join(value.to_bytes(width, "little") for value, width in sizes)
    local = b"PK\3\4\x14\0\0\0\x08\0\0\0\0\0" + fields + b"\0\0" + name
    central = b"PK\1\2\x14\0\x14\0\0\0\x08\0\0\0\0\0" + fields + bytes(16) + name
    end = b"PK\5\6\0\0\0\0\1\0\1\0" + len(central).to_bytes(4, "little")
    end += (len(local) + len(content)).to_bytes(4, "little") + b"\0\0"
    path.write_bytes(local + content + central + end)


RESULT = {
    "format": "cka_probe.SimilarityMatrix",
    "version": 1,
    "rows": ["a"],
    "columns": ["b"],
    "notes": [],
    "measure": "cka",
    "meta": {},
    "row_models": None,
    "column_models": None,
}
SIGNATURE = {
    "format": "cka_probe.signature",
    "name": "net",
    "layers": ["a"],
    "order": "",
    "kernel": "Linear()",
    "estimator": "unbiased",
    "pooling": "auto",
    "notes": [],
    "samples": [4],
}
LIE = npy((10**12,), content=b"1234")
READERS = {
    "result": (cp.SimilarityMatrix.load, RESULT, "values"),
    "signature": (lambda path: cp.Signature.load(path), SIGNATURE, "gram_0"),
    "checkpoint": (
        lambda path: Checkpoint.load(path, torch.device("cpu")),
        {"format": "cka_probe.checkpoint", "done": 1, "order": "", "layers": [], "modes": []},
        "sum_cross",
    ),
    "features": (load_arrays, {}, "a"),
}


@pytest.mark.parametrize(("read", "header", "entry"), READERS.values(), ids=READERS)
class TestEveryReader:
    def test_an_array_that_claims_more_than_it_holds(self, tmp_path, read, header, entry):
        path = tmp_path / "x.npz"
        write_npz(path, header=text(header), scale_0=npy((1,), "<f8", bytes(8)), **{entry: LIE})
        refused(r"x\.npz", read, path)

    def test_a_bomb(self, tmp_path, read, header, entry):
        path = tmp_path / "x.npz"
        bomb(path, entry, 300)
        assert path.stat().st_size < 2**20
        refused(r"x\.npz .*bytes would unpack to", read, path)

    def test_python_objects(self, tmp_path, read, header, entry):
        path = tmp_path / "x.npz"
        objects = npy((1,), "|O", b"cos\nsystem\n(S'touch owned'\ntR.")
        write_npz(path, header=text(header), scale_0=npy((1,), "<f8", bytes(8)), **{entry: objects})
        refused(r"x\.npz", read, path)

    def test_no_archive(self, tmp_path, read, header, entry):
        (tmp_path / "x.npz").write_bytes(b"PK\3\4" + bytes(1000))
        refused(r"x\.npz", read, tmp_path / "x.npz")


@pytest.mark.parametrize("read", [READERS[name][0] for name in ("result", "signature", "checkpoint")])
@pytest.mark.parametrize(
    "header",
    ["[" * 200_000, '{"a":' * 200_000, "[]", "7", "{}", "not json", '"' + "x" * 5_000_000 + '"'],
    ids=["deep list", "deep object", "list", "number", "empty", "no json", "long"],
)
def test_headers(tmp_path, read, header):
    write_npz(tmp_path / "x.npz", header=text(header))
    refused(r"x\.npz", read, tmp_path / "x.npz")


def test_a_signature_that_claims_a_billion_minibatches(tmp_path):
    write_npz(tmp_path / "x.npz", header=text({**SIGNATURE, "samples": [4] * 400_000}), gram_0=LIE)
    refused("it names 400000 minibatches and holds 1 arrays", cp.Signature.load, tmp_path / "x.npz")
    write_npz(tmp_path / "x.npz", header=text({**SIGNATURE, "samples": 10**9}), gram_0=LIE)
    refused(r"x\.npz is not a signature", cp.Signature.load, tmp_path / "x.npz")


def test_a_result_that_is_larger_than_its_layers(tmp_path):
    write_npz(tmp_path / "x.npz", header=text(RESULT), values=npy((3000, 3000), "<f4", bytes(36_000_000)))
    refused("'values' is larger than its 1 pairs of layers", cp.SimilarityMatrix.load, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LIE, r"takes 4,000,000,000,000 bytes, but 4 are there"),
        (npy((2, 2), content=bytes(15)), "takes 16 bytes, but 15 are there"),
        (npy((1,), "|O", b"x"), "Python objects"),
        (npy((-1,), content=b""), r"shape \(-1,\)|shape is not valid|-1"),
        (b"\x93NUMPY\x07\0" + bytes(50), "format"),
        (b"not numpy at all", "magic"),
        (b"", "EOF|magic|short|empty"),
    ],
)
def test_npy(tmp_path, content, message):
    (tmp_path / "x.npy").write_bytes(content)
    refused(message, read_npy, tmp_path / "x.npy")
    refused(r"x\.npy cannot be read as npy", load_arrays, tmp_path / "x.npy")


def test_safetensors_that_claim_more_than_they_hold(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    for content in (len(header).to_bytes(8, "little") + header, (2**60).to_bytes(8, "little") + b"{}", b"short"):
        (tmp_path / "x.safetensors").write_bytes(content)
        refused(r"x\.safetensors cannot be read", load_arrays, tmp_path / "x.safetensors")


def test_honest_files_are_read(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype="<i2").reshape(2, 3)),
        "c": np.float16(3),
        "d": np.zeros((0, 4)),
        "e": np.zeros((3000, 3000), np.float32),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        with open_npz(tmp_path / "x.npz") as found:
            assert set(found) == set(arrays)
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array)
                assert found[name].dtype == array.dtype
                assert found.shape(name) == array.shape
    np.save(tmp_path / "y.npy", arrays["b"])
    np.testing.assert_array_equal(read_npy(tmp_path / "y.npy"), arrays["b"])


def test_a_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy((0,)))
        archive.writestr("a", npy((0,)))
    with pytest.raises(ValueError, match="two arrays called 'a'"), open_npz(tmp_path / "x.npz"):
        pass


def test_what_was_written_is_read_again(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    data = list(torch.randn(3, 8, 4))
    result = cp.compare(net, net, data, progress=False)
    np.testing.assert_array_equal(cp.SimilarityMatrix.load(result.save(tmp_path / "r.npz")).values, result.values)
    made = cp.signature(net, data, progress=False)
    made.save(tmp_path / "s.npz")
    np.testing.assert_array_equal(cp.Signature.load(tmp_path / "s.npz").grams, made.grams)


def test_a_result_of_small_numbers_that_would_grow_eightfold(tmp_path):
    names = [f"layer{i}" for i in range(3000)]
    header = {**RESULT, "rows": names, "columns": names}
    write_npz(tmp_path / "x.npz", header=text(header), values=npy((3000, 3000), "|u1", bytes(3000 * 3000)))
    refused(r"x\.npz .*'values' holds uint8, not float64", cp.SimilarityMatrix.load, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("header", "scale", "gram", "message"),
    [
        ({"samples": [-5]}, npy((1,), "<f8", bytes(8)), npy((1, 10), "<f4", bytes(40)), "no positive integers"),
        ({"samples": [4.0]}, npy((1,), "<f8", bytes(8)), npy((1, 10), "<f4", bytes(40)), "no positive integers"),
        ({}, npy((0,), "<f8"), npy((1, 10), "<f4", bytes(40)), "not one for each layer"),
        ({}, npy((1, 7), "<f8", bytes(56)), npy((1, 10), "<f4", bytes(40)), "not one for each layer"),
        ({}, npy((1,), "<f8", bytes(8)), npy((1, 10), "<U1", bytes(40)), "no floating numbers"),
        ({"layers": [{}]}, npy((1,), "<f8", bytes(8)), npy((1, 10), "<f4", bytes(40)), "layers are no texts"),
    ],
)
def test_parts_of_a_signature_that_do_not_fit_together(tmp_path, header, scale, gram, message):
    write_npz(tmp_path / "x.npz", header=text({**SIGNATURE, **header}), gram_0=gram, scale_0=scale)
    refused(rf"x\.npz .*{message}", cp.Signature.load, tmp_path / "x.npz")


def packed(source, target, megabytes):
    """A file of torch.save whose first storage is a packed run of zeros."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            content = bytes(megabytes * 2**20) if info.filename.endswith("data/0") else old.read(info)
            new.writestr(info.filename, content)


def test_a_packed_file_of_torch_is_a_bomb(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "good.pt")
    packed(tmp_path / "good.pt", tmp_path / "checkpoint.pt", 64)
    refused(
        r"checkpoint\.pt.*is packed, which torch.save never does",
        load_weights,
        nn.Linear(3, 2),
        tmp_path / "checkpoint.pt",
    )
    with pytest.raises(CheckpointError, match="is packed"):
        load_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch says how it reads the file
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.complex64), r"of another kind than in the network: weight \(complex\)"),
        (torch.zeros(2, 3).to_sparse(), r"of another kind than in the network: weight \(torch.sparse_coo\)"),
        (torch.zeros(2, 3, device="meta"), r"without numbers \(on the meta device\): weight"),
    ],
)
def test_weights_that_a_network_cannot_take(tmp_path, weight, message):
    torch.save({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "w.pt")
    refused(message, load_weights, nn.Linear(3, 2), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (".".join("a" * 20_000) + " = 1", "nested too deeply"),
        ("x = " + "9" * 100_000, "is not a TOML file"),
        ('x = "' + "a" * 2_000_000 + '"', "is not a TOML file: it has 2,000,006 bytes"),
    ],
    ids=["dotted", "digits", "long"],
)
def test_recipes_that_take_long_to_read(tmp_path, content, message):
    (tmp_path / "x.toml").write_text(content)
    refused(rf"x\.toml.*{message}", Recipe.load, tmp_path / "x.toml")


def test_inputs_without_numbers(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy((10**12, 0)))
    refused(r"x\.npy must hold numbers", load_data, str(tmp_path / "x.npy"))
