"""Shared by the tests of the report in headless Chromium: a matrix, opening, pointing and choosing."""

import shutil
import time
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


def chromium(profile):
    """A browser without a window; the test is skipped where it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if not CHROMIUM.exists() or driver is None:
        pytest.skip("needs /usr/bin/chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


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
