"""The report in headless Chromium: no network, no errors, texts under the mouse, 200 x 200 layers stay fast."""

import json
from itertools import pairwise

import numpy as np
import pytest
from reports import choose, hover, make, open_report, rows_of_table, wait

from cka_probe.similarity.matrix import SimilarityMatrix

SHAPE = (6, 8)


@pytest.fixture(scope="class")
def small(browser, tmp_path_factory):
    """The matrix and the path of a report with everything in it, opened once for all tests of the class."""
    full = {"standard_error": 0.02, "p_value": 0.004, "chance": 0.1}
    matrix = make(*SHAPE, **{name: np.full(SHAPE, value) for name, value in full.items()})
    path = tmp_path_factory.mktemp("report") / "r.html"
    open_report(browser, matrix, path)
    return matrix, path


class TestOneResult:
    def test_opens_without_network_or_errors(self, browser, small):
        _, path = small
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert {url.split(":", 1)[0] for url in asked} == {"data", "file"}
        assert [url for url in asked if url.startswith("file:")] == [path.as_uri()]
        assert browser.get_log("browser") == []

    def test_hover_says_layers_value_interval_and_p_value(self, browser, small):
        matrix, _ = small
        text = hover(browser, 1, 5, *SHAPE)
        low, high = (end[1, 5] for end in matrix.interval())
        assert "layer1.conv × features.5" in text
        assert f"CKA (unbiased) {matrix.values[1, 5]:.4f}" in text
        assert f"95 % interval {low:.4f} to {high:.4f}".replace("-", "−") in text
        assert "p-value 0.0040" in text
        assert "chance level 0.1000" in text

    def test_undefined_cells_say_so_and_are_hatched(self, browser, small):
        assert "undefined" in hover(browser, 3, 2, *SHAPE)
        assert browser.execute_script("return plot.data[0].z[3]") == [None] * 8
        assert browser.execute_script("return plot.layout.images[0].source").startswith("data:image/svg+xml,")
        assert "8 of 48 pairs undefined (hatched)" in browser.execute_script("return byId('summary').textContent")

    def test_layers_lie_as_in_the_pictures(self, browser, small):
        places = browser.execute_script(
            "return [...document.querySelectorAll('#plot .ytick text')]"
            ".map(t => [t.textContent, t.getBoundingClientRect().y])"
        )
        assert [name for name, _ in sorted(places, key=lambda p: -p[1])] == list(small[0].rows)

    def test_the_colour_bar_has_its_ends_and_the_chance_level(self, browser, small):
        texts = browser.execute_script(
            "return [...document.querySelectorAll('#plot .infolayer .colorbar text, #plot .cbaxis text')]"
            ".map(t => t.textContent)"
        )
        assert {"0.00", "1.00", "◂ chance 0.10"} <= set(texts)

    def test_how_it_was_made_and_notes(self, browser, small):
        made = browser.execute_script("return [...byId('made').rows].map(r => [...r.cells].map(c => c.textContent))")
        assert ["samples", "512"] in made
        assert browser.execute_script("return byId('notes').textContent") == "layer3.conv: constant output"

    def test_table_sorts_and_filters(self, browser, small):
        from selenium.webdriver.common.by import By

        matrix, _ = small
        shown = rows_of_table(browser)
        assert len(shown) == 48
        assert [row[2] for row in shown[:3]] == [f"{v:.4f}" for v in matrix.pairs()["value"][:3]]
        assert shown[-1][2] == "undefined"
        heads = browser.find_elements(By.CSS_SELECTOR, "#pairs th button")
        assert [head.text for head in heads] == [
            "row layer",
            "column layer",
            "value ▾",
            "low",
            "high",
            "standard error",
            "p-value",
            "chance level",
        ]
        heads[2].click()
        shown = rows_of_table(browser)
        assert shown[0][2] == f"{np.nanmin(matrix.values):.4f}"
        assert shown[-1][2] == "undefined"  # last in both orders
        browser.find_element(By.ID, "filter").send_keys("FEATURES.7")
        shown = rows_of_table(browser)
        assert {row[1] for row in shown} == {"features.7"}
        assert len(shown) == 6


def test_selectors_of_measure_models_result_and_quantity(browser, tmp_path):
    shape = (4, 4)
    models = ["a", "a", "b", "b"]
    blocks = make(*shape, measure="nbs", row_models=models, column_models=models)
    results = {"before": make(*shape), "after": make(*shape, standard_error=np.full(shape, 0.1)), "blocks": blocks}
    open_report(browser, results, tmp_path / "r.html")
    quantity = "return document.querySelector('#select-quantity') !== null"
    assert not browser.execute_script(quantity)
    choose(browser, "source", "after")
    assert browser.execute_script(quantity)
    choose(browser, "quantity", "standard error")
    assert browser.execute_script("return plot.data[0].z[0]") == [0.1] * 4
    choose(browser, "measure", "NBS (unbiased)")
    assert browser.execute_script("return plot.data[0].z.length") == 4
    assert (
        browser.execute_script("return plot.layout.shapes.length") == 4
    )  # a white line on a black one, in both directions
    choose(browser, "pair", "b × a")
    assert browser.execute_script("return plot.data[0].z") == [[None, None], blocks_corner(blocks)]
    assert {tuple(row[:2]) for row in rows_of_table(browser)} == {
        (f"b: layer{r}.conv", f"a: features.{c}") for r in (2, 3) for c in (0, 1)
    }
    assert browser.get_log("browser") == []


def blocks_corner(matrix):
    return [float(f"{value:.7g}") for value in matrix.values[3, :2]]


def test_names_are_text_not_markup(browser, tmp_path):
    evil = "<img src=x onerror=document.title='broken'>"
    matrix = SimilarityMatrix([[1.0]], [evil], ["</script><b>x"], notes=[evil], meta={"model_x": evil})
    open_report(browser, matrix, tmp_path / "r.html")
    assert evil in hover(browser, 0, 0, 1, 1)
    assert rows_of_table(browser)[0][:2] == [evil, "</script><b>x"]
    assert browser.title != "broken"
    assert browser.get_log("browser") == []


def test_two_hundred_layers_stay_responsive(browser, tmp_path):
    shape = (200, 200)
    matrix = make(
        *shape, standard_error=np.full(shape, 0.02), p_value=np.full(shape, 0.004), chance=np.full(shape, 0.1)
    )
    open_report(browser, matrix, tmp_path / "r.html")
    # The lines fill the box as soon as the page is there.
    filled = "const box = byId('scroll'), last = [...box.querySelectorAll('tr:not(.space)')].at(-1);"
    filled += "return last.getBoundingClientRect().bottom >= box.getBoundingClientRect().bottom"
    assert browser.execute_script(filled)
    # Milliseconds that the page is busy, measured inside it. The limits are wide, because the machine may be shared.
    busy = "const start = performance.now(); {}; return performance.now() - start"
    assert browser.execute_script(busy.format("draw()")) < 5000
    assert browser.execute_script(busy.format("state.sort = 'p_value'; table()")) < 1500
    assert browser.execute_script(busy.format("Plotly.Fx.hover(plot, [{xval: 50, yval: 60}])")) < 1000
    assert "layer60.conv × features.61" in hover(browser, 60, 61, *shape)
    assert 20 < len(rows_of_table(browser)) < 200  # only those in sight
    browser.execute_script("state.sort = 'values'; table()")
    last = "const box = byId('scroll'); box.scrollTop = box.scrollHeight; lines(); return byId('scroll').scrollHeight"
    assert browser.execute_script(last) > 40_000 * 27
    wait(browser, "return byId('pairs').textContent.includes('undefined')")  # undefined pairs are last
    assert browser.execute_script("return byId('shown').textContent") == "40,000 pairs"
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('#plot .ytick text')].map(t => t.getBoundingClientRect())"
        ".map(b => [b.top, b.bottom])"
    )
    boxes.sort()
    assert 20 < len(boxes) < 200
    assert all(after[0] >= before[1] - 3 for before, after in pairwise(boxes))
    # After zooming in there is room for every name.
    browser.execute_script("Plotly.relayout(plot, {'yaxis.range': [49.5, 59.5], 'xaxis.range': [49.5, 59.5]})")
    wait(browser, "return document.querySelectorAll('#plot .ytick text').length === 10", 10)
