"""`cka-probe compare --layers ... --exclude ...`: new names, globs and layers that are left out."""

import json

import pytest

from cka_probe.cli import main

ARGUMENTS = ["compare", "resnet8", "--samples", "24", "--batch-size", "12", "--image-size", "16", "--json"]


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command line."""
    with pytest.raises(SystemExit) as left:
        main([*ARGUMENTS, *arguments])
    printed = capsys.readouterr()
    return left.value.code or 0, printed.out, printed.err


def test_layers_are_renamed_and_left_out(capsys):
    code, out, _ = run(capsys, "--layers", "conv1=stem,layer*", "--exclude", "layer2")
    assert code == 0
    assert json.loads(out)["rows"] == ["stem", "layer1", "layer3"]


def test_an_exclude_that_removes_nothing_is_a_mistake(capsys):
    code, _, err = run(capsys, "--layers", "layer*", "--exclude", "fc")
    assert code == 2
    assert "`exclude`: 'fc' removes none of the layers" in " ".join(err.split())
