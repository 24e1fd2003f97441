"""`cka-probe plan` prints what `compare` would do, and runs the networks on one batch only."""

import json

import pytest
from command_line import run

NETWORK = ["plan", "resnet8", "--data", "noise", "--samples", "96", "--batch-size", "32"]


def test_all_routes_with_time_and_memory(capsys):
    code, out, _ = run(capsys, *NETWORK, "--memory", "2GiB")
    assert code == 0
    assert "96 samples" in out
    assert "Memory: 2 GiB" in out
    for route in ("moments", "grams", "disk", "blocks", "sketch"):
        assert f" {route} " in out
    assert "\n* grams " in out


def test_less_memory_means_more_passes(capsys):
    passes = {}
    for memory in ("2GiB", "60MiB"):
        code, out, _ = run(capsys, *NETWORK, "--memory", memory, "--json")
        assert code == 0
        found = {route["route"]: route for route in json.loads(out)["routes"]}
        passes[memory] = found["grams"]["passes"] if found["grams"]["fits"] else None
    assert passes["2GiB"] == 1
    assert passes["60MiB"] is None or passes["60MiB"] > 1


def test_a_size_that_is_none_is_an_error(capsys):
    code, _, error = run(capsys, *NETWORK, "--memory", "much")
    assert code == 2
    assert "`memory` must be a size" in error


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_the_route_is_that_of_compare(pooling, tmp_path, capsys):
    import cka_probe as cp

    arguments = ["resnet8", "--data", "noise", "--samples", "96", "--batch-size", "32", "--pooling", pooling]
    _, out, _ = run(capsys, "plan", *arguments, "--memory", "2GiB", "--json")
    code, _, error = run(
        capsys, "compare", *arguments, "--scope", "dataset", "--memory", "2GiB", "-o", str(tmp_path / "r.npz"), "-q"
    )
    assert code == 0, error
    assert cp.SimilarityMatrix.load(tmp_path / "r.npz").meta["route"] == json.loads(out)["chosen"]
