"""The report in headless Chromium: window sizes, several results, filter, colours, best matches, downloads."""

import time

import numpy as np
import pytest
from reports import choose, hover, make, open_report, rows_of_table, wait

from cka_probe.similarity.matrix import SimilarityMatrix


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
    # Beside the map stand the names of the layers, and in a wide window it is as high as the window.
    assert (right - left) / width > (0.65 if width < 600 else 0.4)
    assert (bottom - top) / height > (0.3 if width < 600 else 0.6)
    assert right <= width
    assert bottom <= height
    names = browser.execute_script("return [...document.querySelectorAll('#plot .ytick text')].map(t => t.textContent)")
    assert names[0] == "layer0.conv"
    titles = browser.execute_script("return [plot.layout.xaxis.title.text, plot.layout.yaxis.title.text]")
    both = ["b: backbone.body.*", "a: backbone.body.*"]
    assert titles == ([f"rows: {both[1]}<br>columns: {both[0]}", ""] if width < 600 else both)
    assert browser.get_log("browser") == []


def test_in_a_narrow_window_many_layers_are_numbered_until_one_zooms_in(browser, sized, tmp_path):
    sized(420, 900)
    open_report(browser, make(120, 120), tmp_path / "r.html")
    texts = "return [...document.querySelectorAll('#plot .ytick text')].map(t => t.textContent)"
    numbers = [int(text) for text in browser.execute_script(texts)]
    assert numbers in ([*range(0, 120, 10)], [*range(0, 120, 20)])
    left, right = browser.execute_script(
        "const b = document.querySelector('#plot .nsewdrag').getBoundingClientRect(); return [b.left, b.right]"
    )
    assert (right - left) / 420 > 0.75
    browser.execute_script("Plotly.relayout(plot, {'yaxis.range': [49.5, 53.5], 'xaxis.range': [49.5, 53.5]})")
    wait(browser, f"const t = (() => {{{texts}}})(); return t.length === 4 && t[0] === 'layer50.conv'")


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
