"""The figure of detectors and segmenters with a tiny budget: it is drawn, and drawn again from its stored numbers."""

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import detections

TINY = detections.Budget(
    train=4,
    val=6,
    size=64,
    teacher_steps=1,
    student_steps=2,
    segmenter_teacher_steps=1,
    segmenter_steps=2,
    batch_size=2,
)


def test_runs_are_made_once_and_drawn_again_from_what_is_kept(tmp_path, monkeypatch):
    mpl.use("Agg")
    monkeypatch.setattr(detections.os, "cpu_count", lambda: 1)  # in this process
    first = detections.make(tmp_path, cache=tmp_path / "cache", budget=TINY, seeds=1)
    assert set(first["detectors"]["method"]) == set(detections.METHODS["detector"])
    assert set(first["segmenters"]["method"]) == set(detections.METHODS["segmenter"])
    table = pd.read_csv(tmp_path / "data" / "detectors.csv")
    assert len(table) == 1 + 4
    for name in ("detectors", "segmenters"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        (tmp_path / f"{name}.png").unlink()
    monkeypatch.setattr(detections, "run_all", lambda *_: pytest.fail("the runs are there already"))
    again = detections.make(tmp_path, cache=tmp_path / "none", budget=TINY, seeds=1)
    pd.testing.assert_frame_equal(again["detectors"], first["detectors"], atol=1e-5)
    assert (tmp_path / "segmenters.png").is_file()


def test_methods_are_compared_seed_by_seed():
    table = pd.DataFrame(
        {
            "method": ["teacher", *["alone"] * 3, *["PCKA"] * 3],
            "seed": [0, 0, 1, 2, 0, 1, 2],
            "AP": [9, 1, 2, 3, 2, 4, 3],
        }
    )
    found = detections.compared(table, "AP").set_index("method")
    assert found.loc["PCKA", "difference"] == pytest.approx(1.0)
    assert found.loc["PCKA", "p"] == pytest.approx(0.2254, abs=1e-4)
    assert found.loc["alone", "mean"] == 2.0
