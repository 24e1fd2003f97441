"""The report in headless Chromium: no network, no errors, texts under the mouse, 200 x 200 layers stay fast."""

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cka_probe.plotting import write_report
from cka_probe.similarity.matrix import SimilarityMatrix

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1500",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if not CHROMIUM.exists() or driver is None:
        pytest.skip("needs /usr/bin/chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def make(rows, columns, **kwargs):
    distance = np.linspace(0, 1, rows)[:, None] - np.linspace(0, 1, columns)[None]
    values = np.exp(-((distance / 0.3) ** 2))
    values[rows // 2] = np.nan
    meta = {"model_x": "resnet18", "model_y": "vgg13", "samples": 512, "estimator": "unbiased"}
    return SimilarityMatrix(
        values,
        [f"layer{i}.conv" for i in range(rows)],
        [f"features.{i}" for i in range(columns)],
        **{"meta": meta, "notes": [f"layer{rows // 2}.conv: constant output"]} | kwargs,
    )


def open_report(browser, results, path):
    write_report(results, path)
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())
    wait(browser, "return document.querySelector('#plot .hoverlayer') !== null")


def wait(browser, script, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.05)
    raise AssertionError(f"still false after {seconds} s: {script}")


def hover(browser, row, column, rows, columns):
    """Move the mouse to a cell and return the text that appears."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    area = browser.find_element(By.CSS_SELECTOR, "#plot .nsewdrag")
    # Offsets are measured from the middle, y downwards.
    x = ((column + 0.5) / columns - 0.5) * area.size["width"]
    y = (0.5 - (row + 0.5) / rows) * area.size["height"]
    browser.execute_script("Plotly.Fx.unhover(plot)")
    ActionChains(browser).move_to_element_with_offset(area, round(x), round(y)).perform()
    wait(browser, "return document.querySelector('#plot .hovertext') !== null", 5)
    lines = browser.execute_script(
        "return [...document.querySelectorAll('#plot .hovertext tspan.line, #plot .hovertext text')]"
        ".map(e => e.textContent)"
    )
    return " | ".join(lines)


def choose(browser, name, text):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.ID, f"select-{name}")).select_by_visible_text(text)


def rows_of_table(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#pairs tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )


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
    # Milliseconds that the page is busy, measured inside it. The limits are wide, because the machine may be shared.
    busy = "const start = performance.now(); {}; return performance.now() - start"
    assert browser.execute_script(busy.format("draw()")) < 5000
    assert browser.execute_script(busy.format("state.sort = 'p_value'; table()")) < 1500
    assert browser.execute_script(busy.format("Plotly.Fx.hover(plot, [{xval: 50, yval: 60}])")) < 1000
    assert "layer60.conv × features.61" in hover(browser, 60, 61, *shape)
    assert 20 < len(rows_of_table(browser)) < 200  # only those in sight
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


def resize(browser, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def sized(browser):
    yield lambda width, height: resize(browser, width, height)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (420, 900)])
def test_the_map_fills_the_window_and_nothing_is_wider_than_it(browser, sized, tmp_path, width, height):
    sized(width, height)
    names = [f"backbone.body.layer{i}.conv" for i in range(12)]
    matrix = SimilarityMatrix(np.eye(12), names, names, meta={"model_x": "a", "model_y": "b"})
    open_report(browser, matrix, tmp_path / "r.html")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    left, top, right, bottom = browser.execute_script(
        "const b = document.querySelector('#plot .nsewdrag').getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom]"
    )
    assert min((right - left) / width, 1) > 0.6 or (bottom - top) / height > 0.6
    assert right <= width
    assert bottom <= height
    names = browser.execute_script("return [...document.querySelectorAll('#plot .ytick text')].map(t => t.textContent)")
    assert names[0] == "layer0.conv"
    titles = browser.execute_script("return [plot.layout.xaxis.title.text, plot.layout.yaxis.title.text]")
    assert titles == ["b: backbone.body.*", "a: backbone.body.*"]
    assert browser.get_log("browser") == []


@pytest.fixture
def pair(browser, tmp_path):
    shape = (6, 6)
    before = make(*shape, chance=np.full(shape, 0.1))
    after = SimilarityMatrix(0.5 * before.values, before.rows, before.columns, meta=before.meta)
    open_report(browser, {"before": before, "after": after}, tmp_path / "r.html")
    return before, after


class TestSeveralResults:
    def test_beside_each_other_with_one_cursor(self, browser, pair):
        choose(browser, "beside", "after")
        wait(browser, "return document.querySelectorAll('#panels .hoverlayer').length === 2")
        hover(browser, 1, 2, 6, 6)
        wait(browser, "return getComputedStyle(document.querySelectorAll('.cursor')[1]).display === 'block'")
        text = browser.execute_script("return byId('cursor').textContent")
        for name, matrix in zip(("before", "after"), pair, strict=True):
            assert f"{name} {matrix.values[1, 2]:.4f}" in text
        mark, area = browser.execute_script(
            "const of = e => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom] };"
            "return [of(document.querySelectorAll('.cursor')[1]), of(document.querySelectorAll('.nsewdrag')[1])]"
        )
        across = ((mark[0] + mark[1]) / 2 - area[0]) / (area[1] - area[0]) * 6
        up = (area[3] - (mark[2] + mark[3]) / 2) / (area[3] - area[2]) * 6
        assert (int(across), int(up)) == (2, 1)
        assert browser.get_log("browser") == []

    def test_difference(self, browser, pair):
        before, after = pair
        choose(browser, "beside", "after")
        choose(browser, "mode", "difference")
        shown = browser.execute_script("return plot.data[0].z")
        assert shown[3] == [None] * 6
        np.testing.assert_allclose(shown[0], (before.values - after.values)[0], atol=1e-6)
        assert browser.execute_script("return [plot.data[0].zmin, plot.data[0].zmax]") == [-0.5, 0.5]
        assert browser.execute_script("return document.querySelector('#panels h3').textContent") == "before − after"
        text = hover(browser, 1, 2, 6, 6)
        assert f"difference {before.values[1, 2] - after.values[1, 2]:.4f}" in text

    def test_results_of_other_layers_have_no_difference(self, browser, tmp_path):
        open_report(browser, {"one": make(4, 4), "other": make(5, 5)}, tmp_path / "r.html")
        choose(browser, "beside", "other")
        assert not browser.execute_script("return document.querySelector('#select-mode') !== null")
        assert browser.execute_script("return panels.map(p => p.div.data[0].z.length)") == [4, 5]


def test_the_filter_acts_on_the_map_too(browser, pair):
    browser.execute_script("byId('filter').value = 'LAYER1'; byId('filter').oninput({target: byId('filter')})")
    wait(browser, "return plot.data[0].z.length === 1")
    np.testing.assert_allclose(browser.execute_script("return plot.data[0].z[0]"), pair[0].values[1], atol=1e-6)
    assert len(rows_of_table(browser)) == 6
    assert "layer1.conv × features.4" in hover(browser, 0, 4, 1, 6)
    browser.execute_script("byId('filter').value = 'nothing'; byId('filter').oninput({target: byId('filter')})")
    wait(browser, "return plot.data[0].z.length === 6")
    assert "No layer has this text" in browser.execute_script("return byId('shown').textContent")


def test_range_of_the_colours(browser, pair):
    values = pair[0].values
    ends = "return [plot.data[0].zmin, plot.data[0].zmax]"
    choose(browser, "colours", "span the values")
    np.testing.assert_allclose(browser.execute_script(ends), [np.nanmin(values), np.nanmax(values)], atol=1e-6)
    choose(browser, "colours", "from chance")
    assert browser.execute_script(ends) == [0.1, 1]
    browser.execute_script("byId('low').value = 0.25; byId('low').onchange({target: byId('low')})")
    assert browser.execute_script(ends) == [0.25, 1]
    browser.execute_script("byId('low').value = 7; byId('low').onchange({target: byId('low')})")
    assert browser.execute_script(ends) == [0, 1]  # no scale ends below its start


def test_best_matches_are_those_of_the_matrix(browser, tmp_path):
    values = np.array([[1, 0.5, 0.7], [0.5, 1, 0.2], [0.7, 0.2, 1]])
    matrix = SimilarityMatrix(values, list("abc"), list("abc"))
    open_report(browser, matrix, tmp_path / "r.html")
    browser.execute_script("byId('best').click()")
    x, y = browser.execute_script("return [[...plot.data[1].x], [...plot.data[1].y]]")
    assert (x, y) == ([2, 0, 0], [0, 1, 2])


def test_dark_and_light(browser, pair):
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(paper)
    browser.execute_script("byId('theme').click()")
    after = browser.execute_script(paper)
    assert {before, after} == {"rgb(255, 255, 255)", "rgb(22, 24, 28)"}
    assert browser.execute_script("return plot.layout.paper_bgcolor") == ("#16181c" if "22" in after else "#fff")


def test_download_of_csv_svg_and_png(browser, tmp_path):
    rows = ["=HYPERLINK(1)", 'a"b,c']
    matrix = SimilarityMatrix([[0.25], [np.nan]], rows, ["x"])
    open_report(browser, matrix, tmp_path / "r.html")
    lines = browser.execute_script("return csv()").split("\r\n")
    assert lines == ["row layer,column layer,value", "'=HYPERLINK(1),x,0.25", '"a""b,c",x,', ""]
    folder = tmp_path / "down"
    folder.mkdir()
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    for kind in ("csv", "svg", "png"):
        browser.execute_script(f"download('{kind}')")
    names = {"pairs.csv", "similarity.svg", "similarity.png"}
    end = time.monotonic() + 30
    while {path.name for path in folder.iterdir()} != names and time.monotonic() < end:
        time.sleep(0.1)
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "similarity.svg").read_text().startswith("<svg")
    assert (folder / "similarity.png").read_bytes()[1:4] == b"PNG"
    assert browser.get_log("browser") == []


def test_three_sentences_say_what_the_numbers_mean(browser, pair):
    texts = browser.execute_script("return [...byId('meaning').children].map(li => li.textContent)")
    assert len(texts) == 3
    assert texts[0].startswith("CKA (unbiased) compares how two layers arrange the same samples")
    assert texts[1].startswith("The chance level is")
    assert texts[2].startswith("No p-values were computed")
