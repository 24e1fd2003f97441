"""The report holds every number in one file, written whole; test_report_browser.py tests it in a browser."""

import json
import re
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cka_probe.plotting import write_report
from cka_probe.similarity.matrix import SimilarityMatrix


def make(shape=(2, 3), **kwargs):
    values = np.linspace(0.1, 0.9, shape[0] * shape[1]).reshape(shape)
    rows, columns = [f"conv{i}" for i in range(shape[0])], [f"block{i}" for i in range(shape[1])]
    return SimilarityMatrix(kwargs.pop("values", values), rows, columns, **kwargs)


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL).group(1))


class TestContent:
    def test_every_number_is_in_it(self, tmp_path):
        values = np.array([[0.5, np.nan], [-0.03, 1 / 3]])
        matrix = make(
            (2, 2),
            values=values,
            standard_error=[[0.1, np.nan], [0.2, 0]],
            p_value=[[0.01, np.nan], [0.5, 1e-9]],
            chance=np.full((2, 2), 0.2),
            notes=["block1: constant"],
            meta={"estimator": "biased", "samples": 512, "model_x": "A", "model_y": "B", "degrees_of_freedom": 4},
        )
        data = data_of(write_report(matrix, tmp_path / "r.html"))
        (result,) = data["results"]
        assert result["values"] == [[0.5, None], [-0.03, pytest.approx(1 / 3, abs=1e-7)]]
        low, high = matrix.interval(0.95)
        assert result["low"][0][0] == pytest.approx(low[0, 0], rel=1e-6)
        assert result["high"][1][0] == pytest.approx(high[1, 0], rel=1e-6)
        assert result["low"][0][1] is None
        assert result["p_value"][1] == [0.5, 1e-9]
        assert result["chance_range"] == [[0.2, "chance"]]
        assert result["limits"]["values"] == [-0.03, 1]
        assert result["limits"]["standard_error"] == [0, 0.2]
        assert result["notes"] == ["block1: constant"]
        assert ["samples", "512"] in result["made"]
        assert ["estimator", "biased"] in result["made"]
        assert data["level"] == "95 %"
        assert [view["pair"] for view in data["views"]] == ["A × B"]
        assert data["views"][0]["measure"] == "CKA (biased)"

    def test_level(self, tmp_path):
        matrix = make((1, 1), values=[[0.5]], standard_error=[[0.1]])
        data = data_of(write_report(matrix, tmp_path / "r.html", level=0.5))
        assert data["level"] == "50 %"
        assert data["results"][0]["low"][0][0] == pytest.approx(0.5 - 0.1 * 0.6744897501960817, rel=1e-6)

    def test_quantities_that_the_matrix_lacks_are_null(self, tmp_path):
        (result,) = data_of(write_report(make(), tmp_path / "r.html"))["results"]
        assert {result[key] for key in ("standard_error", "p_value", "chance", "low", "high", "chance_range")} == {None}

    def test_a_chance_level_that_varies(self, tmp_path):
        (result,) = data_of(write_report(make((1, 2), chance=[[0.1, 0.3]]), tmp_path / "r.html"))["results"]
        assert result["chance_range"] == [[0.1, "chance from"], [0.3, "chance to"]]

    def test_pairs_of_models_can_be_chosen(self, tmp_path):
        matrix = make((3, 3), row_models=["a", "a", "b"], column_models=["a", "a", "b"])
        views = data_of(write_report(matrix, tmp_path / "r.html"))["views"]
        assert [v["pair"] for v in views] == ["all models", "a × a", "a × b", "b × a", "b × b"]
        assert (views[2]["rows"], views[2]["columns"]) == ([0, 1], [2])
        assert views[0]["row_models"] == ["a", "a", "b"]

    def test_results_of_one_measure_share_their_scale(self, tmp_path):
        results = {
            "before": make((1, 1), values=[[-0.2]]),
            "after": make((1, 1), values=[[0.5]]),
            "other": make((1, 1), values=[[3.0]], measure="gulp"),
        }
        data = data_of(write_report(results, tmp_path / "r.html"))
        assert [r["limits"]["values"] for r in data["results"]] == [[-0.2, 1], [-0.2, 1], [0, 3]]
        assert [v["source"] for v in data["views"]] == ["before", "after", "other"]

    def test_one_file_with_nothing_to_fetch(self, tmp_path):
        text = write_report(make(), tmp_path / "r.html").read_text(encoding="utf-8")
        outside = re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.DOTALL)  # all but plotly.js
        assert "plotly.js v" in text
        assert "plotly.js v" not in outside
        assert not re.search(r'(src|href)="(?!data:)', outside)
        assert "default-src 'none'" in outside

    def test_names_cannot_break_out(self, tmp_path):
        evil = "</script><script>alert(1)</script>"
        matrix = SimilarityMatrix([[1.0]], [evil], ["<img src=x>"], notes=[evil], meta={"model_x": evil})
        path = write_report(matrix, tmp_path / "r.html", title=evil)
        text = path.read_text(encoding="utf-8")
        assert evil not in text
        assert "alert(1)&lt;/script&gt;" in text  # the title
        assert data_of(path)["results"][0]["rows"] == [evil]

    def test_control_characters_of_names_and_notes_are_shown_as_escapes(self, tmp_path):
        matrix = SimilarityMatrix([[1.0]], ["a\x1b[31m"], ["b\n"], notes=["\x1b]0;x"], meta={"kernel": "\x07"})
        found = data_of(write_report(matrix, tmp_path / "r.html"))["results"][0]
        assert found["rows"] == [r"a\x1b[31m"]
        assert found["columns"] == [r"b\n"]
        assert found["notes"] == [r"\x1b]0;x"]
        assert ["kernel", r"\x07"] in found["made"]

    def test_thousands_of_layers_leave_out_errors_and_say_so(self, tmp_path):
        names = [f"layer{i}" for i in range(1001)]
        values = np.random.default_rng(0).random((1001, 1001))
        matrix = SimilarityMatrix(values, names, names, standard_error=values, p_value=values, notes=["a note"])
        path = write_report(matrix, tmp_path / "r.html")
        found = data_of(path)["results"][0]
        np.testing.assert_allclose(found["values"], values, atol=1e-6)
        assert found["p_value"] is None
        assert found["low"] is None
        assert found["notes"][0] == "a note"
        assert "This result has 1,002,001 cells, so this page holds its values only" in found["notes"][1]
        assert path.stat().st_size < 30e6

    def test_marks_of_the_template_in_names_are_left_alone(self, tmp_path):
        marks = "@PLOTLY@ @DATA@ @TITLE@"
        path = write_report(make((1, 1), notes=[marks]), tmp_path / "r.html", title=marks)
        assert data_of(path)["results"][0]["notes"] == [marks]
        assert f"<h1>{marks}</h1>" in path.read_text(encoding="utf-8")

    def test_heading(self, tmp_path):
        for title, expected in ((None, "CKA: rows × columns"), ("Mine & yours", "Mine &amp; yours")):
            text = write_report(make(), tmp_path / "r.html", title=title).read_text(encoding="utf-8")
            assert f"<h1>{expected}</h1>" in text


class TestRefusals:
    @pytest.mark.parametrize(
        ("results", "kwargs", "error", "match"),
        [
            ({}, {}, ValueError, "There is nothing to report: `results` is empty"),
            ({"a": np.eye(2)}, {}, TypeError, "`results` must hold SimilarityMatrix; 'a' is ndarray"),
            ({"a": make((0, 2), values=np.empty((0, 2)))}, {}, ValueError, r"'a' has shape \(0, 2\)"),
            (make(), {"level": 95}, ValueError, "`level` must lie strictly between 0 and 1, got 95"),
        ],
    )
    def test_of_wrong_arguments(self, tmp_path, results, kwargs, error, match):
        with pytest.raises(error, match=match):
            write_report(results, tmp_path / "r.html", **kwargs)
        assert not list(tmp_path.iterdir())

    def test_missing_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist\. Create it"):
            write_report(make(), tmp_path / "nowhere" / "r.html")

    def test_missing_plotly(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "plotly", None)
        with pytest.raises(ModuleNotFoundError, match=r"needs plotly, .*: pip install 'cka-probe\[report\]'"):
            write_report(make(), tmp_path / "r.html")

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "r.html"
        path.write_text("old")

        def interrupt(_):
            assert len(list(tmp_path.iterdir())) == 2  # the old file and the new one, not renamed yet
            raise KeyboardInterrupt

        monkeypatch.setattr("os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_report(make(), path)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


class TestCommand:
    @pytest.fixture
    def run(self):
        from cka_probe.cli.report import report

        app = typer.Typer()
        app.command()(report)

        def invoke(*arguments):
            return CliRunner().invoke(app, [str(argument) for argument in arguments])

        return invoke

    def test_one_result(self, run, tmp_path):
        make().save(tmp_path / "a.npz")
        outcome = run(tmp_path / "a.npz", "-o", tmp_path / "out.html", "--title", "T")
        assert outcome.exit_code == 0
        assert f"report: {tmp_path / 'out.html'}" in outcome.output
        assert [v["source"] for v in data_of(tmp_path / "out.html")["views"]] == ["a"]

    def test_several_results_quietly(self, run, tmp_path):
        (tmp_path / "other").mkdir()
        for place in ("a.npz", "b.npz", "other/a.npz"):
            make().save(tmp_path / place)
        outcome = run(tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "other/a.npz", "-o", tmp_path / "r.html", "-q")
        assert outcome.exit_code == 0
        assert outcome.output == ""
        sources = [v["source"] for v in data_of(tmp_path / "r.html")["views"]]
        assert sources == [str(tmp_path / "a.npz"), "b", str(tmp_path / "other/a.npz")]

    def test_mistakes(self, run, tmp_path):
        (tmp_path / "bad.npz").write_bytes(b"no")
        make().save(tmp_path / "a.npz")
        for arguments, error, match in (
            ((tmp_path / "bad.npz",), ValueError, r"bad\.npz is not a similarity matrix"),
            ((tmp_path / "none.npz",), FileNotFoundError, r"none\.npz"),
            ((tmp_path / "a.npz", "-o", "r.pdf"), ValueError, r"--output must end in \.html, got r\.pdf"),
            ((tmp_path / "a.npz", tmp_path / "a.npz"), ValueError, "The same file is given twice"),
        ):
            outcome = run(*arguments)
            assert isinstance(outcome.exception, error)
            assert re.search(match, str(outcome.exception))
