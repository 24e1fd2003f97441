"""The map of models in a report: two clicks open the heatmap of their layers."""

import numpy as np
import pytest
from reports import chromium, open_report

from cka_probe.plotting import write_report
from cka_probe.similarity.matrix import SimilarityMatrix

MODELS = ("a", "b </script>", "c", "d")


def results() -> SimilarityMatrix:
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(8, 8))
    layers, models = ["0", "1"] * 4, [model for model in MODELS for _ in range(2)]
    return SimilarityMatrix(values, layers, layers, row_models=models, column_models=models)


def distances(names=MODELS) -> SimilarityMatrix:
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [2.0, 3.0]])[: len(names)]
    return SimilarityMatrix(np.linalg.norm(x[:, None] - x, axis=-1), names, names, meta={"kind": "distance"})


def test_two_clicks_open_the_pair(tmp_path):
    browser = chromium(tmp_path / "profile")
    try:
        write_report(results(), tmp_path / "r.html", distances=distances())
        browser.get((tmp_path / "r.html").as_uri())
        assert browser.execute_script("return [...byId('models-map').data[0].text]") == list(MODELS)
        assert "stress, 0.00" in browser.execute_script("return byId('models-text').textContent")
        for place in (1, 3):
            browser.execute_script(f"byId('models-map').emit('plotly_click', {{points: [{{pointNumber: {place}}}]}})")
        assert browser.execute_script("return [state.view.row_name, state.view.column_name]") == ["b </script>", "d"]
        shown = browser.execute_script("return plot.data[0].z")
        np.testing.assert_allclose(shown, results().values[2:4, 6:8], atol=1e-6)
        assert "b </script> × d is shown below" in browser.execute_script("return byId('models-text').textContent")
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def test_without_distances_there_is_no_map(tmp_path):
    browser = chromium(tmp_path / "profile")
    try:
        open_report(browser, results(), tmp_path / "r.html")
        assert browser.execute_script("return byId('models-section').hidden")
    finally:
        browser.quit()


def test_distances_of_other_models_and_similarities_are_errors(tmp_path):
    with pytest.raises(ValueError, match="has the model 'e', of which `results` holds no layers"):
        write_report(results(), tmp_path / "r.html", distances=distances(("a", "c", "e")))
    with pytest.raises(TypeError, match="must be a SimilarityMatrix of models, got ndarray"):
        write_report(results(), tmp_path / "r.html", distances=distances().values)
    square = SimilarityMatrix(np.eye(3), ["a", "c", "d"], ["a", "c", "d"])
    with pytest.raises(ValueError, match="holds the similarity 'cka'"):
        write_report(results(), tmp_path / "r.html", distances=square)
    assert list(tmp_path.iterdir()) == []
