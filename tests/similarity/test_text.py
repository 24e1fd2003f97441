"""Text that is safe to print, and p-values that are not 0."""

import numpy as np
import pytest

from cka_probe.similarity.matrix import SimilarityMatrix
from cka_probe.similarity.text import p_text, printable


@pytest.mark.parametrize("text", ["layer1.0.conv1", "β_中文.größe", "می‌خواهم", "👩‍🔬", "a$b_{c}^\\d", ""])
def test_ordinary_names_stay_as_they_are(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\tand\r", r"two\nlines\tand\r"),
        ("\x9b31m", r"\x9b31m"),  # an escape code of one character
        ("abc\u202edef", r"abc\u202edef"),  # reverses the direction of what follows
        ("\ud800", r"\ud800"),  # half of a pair: it cannot be encoded
        ("\u2028\x7f\x00", r"\u2028\x7f\x00"),
    ],
)
def test_control_characters_are_shown_as_escapes(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_a_message_of_several_lines_keeps_its_line_feeds():
    assert printable("a\n\x1b[2Jb", keep="\n") == "a\n\\x1b[2Jb"


def test_p_values_below_the_resolution_are_not_printed_as_zero():
    assert [p_text(p) for p in (0.0, 1e-300, 9e-17, 1e-16, 0.5, 1.0)] == ["< 1e-16"] * 3 + ["1e-16", "0.5", "1"]
    tiny = SimilarityMatrix([[0.9, 0.8]], ["a"], ["b", "c"], p_value=[[0, 1e-40]])
    assert "p-value         < 1e-16\n" in repr(tiny).replace("p-value  ", "p-value         ") + "\n"
    assert "&lt; 1e-16" in tiny._repr_html_()
    mixed = SimilarityMatrix([[0.9, 0.8]], ["a"], ["b", "c"], p_value=[[0, 0.25]])
    assert "< 1e-16 to 0.25" in repr(mixed)
    assert "p-value" not in repr(SimilarityMatrix([[0.9]], ["a"], ["b"], p_value=[[np.nan]]))
