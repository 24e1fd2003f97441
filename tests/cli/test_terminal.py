"""Names, notes and errors cannot send escape codes to the terminal."""

import numpy as np
from command_line import run

import cka_probe as cp

NETWORK = """
from torch import nn

def make():
    net = nn.Sequential()
    net.add_module("a\\x1b[31m", nn.Conv2d(3, 4, 3))
    net.add_module("[bold]b[/bold]", nn.Flatten())
    net.add_module("c\\nd", nn.ReLU())
    return net

def fails():
    raise ValueError("\\x1b[2Jgone")
"""


def test_escape_codes_are_shown_as_text(capsys, tmp_path):
    (tmp_path / "odd_names.py").write_text(NETWORK)
    make = f"{tmp_path / 'odd_names.py'}:make"
    small = ("--samples", 8, "--batch-size", 8)
    for command in (("compare", make, *small), ("info", make), ("compare", make, *small, "--json")):
        code, out, err = run(capsys, *command)
        assert code == 0
        assert "\x1b[31m" not in out + err
        assert r"a\x1b[31m" in out or r"a\u001b[31m" in out
    code, out, err = run(capsys, "compare", f"{tmp_path / 'odd_names.py'}:fails")
    assert code == 2
    assert "\x1b" not in err
    assert r"\x1b[2Jgone" in err


def test_names_in_square_brackets_are_not_read_as_styles(capsys, tmp_path):
    (tmp_path / "odd_names.py").write_text(NETWORK)
    out = run(capsys, "info", f"{tmp_path / 'odd_names.py'}:make")[1]
    assert "[bold]b[/bold]" in out
    assert r"c\nd" in out


def test_notes_of_a_file_are_not_trusted(capsys, tmp_path):
    matrix = cp.SimilarityMatrix(np.eye(2), ["a", "b"], ["a", "b"], notes=["\x1b]0;title\x07"])
    matrix.save(tmp_path / "r.npz")
    for option in ((), ("--json",)):
        _, out, err = run(capsys, "compare", tmp_path / "r.npz", *option)
        assert "\x1b" not in out + err
        assert r"\x1b]0;title\x07" in out + err
