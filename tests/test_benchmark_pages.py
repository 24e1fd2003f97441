"""Tables that a benchmark writes into a page are those of its committed results."""

import csv
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import compare
import tables


def test_the_page_of_peers_has_the_measured_times():
    with compare.RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = compare.PAGE.read_text()
    assert tables.on_page(page, compare.SCRIPT, compare.page_text(rows)) == page


def test_a_page_without_the_marks_is_left_alone():
    with pytest.raises(ValueError, match=r"The page has no lines of benchmarks/compare\.py"):
        tables.on_page("# A page", "benchmarks/compare.py", "text")
