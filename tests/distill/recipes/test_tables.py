"""Tables: statistics against scipy and by hand, text as people read it, and only what is missing is run."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import cka_probe.distill.recipes.tables as tables
from cka_probe.distill.recipes.recipe import Recipe
from cka_probe.distill.recipes.tables import format_latex, format_markdown, run_grid, save_table, summarise

LAST = {"kd": [70.0, 71.5, 69.0, 72.0], "rcka": [72.0, 72.5, 71.5, 73.0], "fcka": [70.5, 71.0, 70.0, 71.0]}


@pytest.fixture
def runs():
    lines = [
        {"recipe": "res_a", "method": method, "seed": seed, "last": value, "best": value + 1}
        for method, values in LAST.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(lines)


def recipe(name="res_a", **paper):
    content = {
        "name": name,
        "teacher": {"model": "resnet8"},
        "student": {"model": "resnet8"},
        "data": {"name": "digits"},
    }
    return Recipe.model_validate({**content, "paper": paper})


def test_mean_deviation_paper_and_paired_test(runs):
    table = summarise(runs, [recipe(rcka=74.0, teacher=80.0)], against="kd").set_index("method")
    for method, values in LAST.items():
        assert table.loc[method, "last_mean"] == pytest.approx(np.mean(values))
        assert table.loc[method, "last_sd"] == pytest.approx(np.std(values, ddof=1))
        assert table.loc[method, "best_mean"] == pytest.approx(np.mean(values) + 1)
    assert table.loc["rcka", "paper"] == 74.0
    assert np.isnan(table.loc["kd", "paper"])
    p = {method: stats.ttest_rel(LAST[method], LAST["kd"]).pvalue for method in ("rcka", "fcka")}
    assert p["rcka"] < p["fcka"]
    assert table.loc["rcka", "p"] == pytest.approx(2 * p["rcka"])  # Holm: the smaller of two is doubled
    assert table.loc["fcka", "p"] == pytest.approx(max(p["fcka"], 2 * p["rcka"]))
    assert table.loc["rcka", "difference"] == pytest.approx(np.mean(LAST["rcka"]) - np.mean(LAST["kd"]))
    assert np.isnan(table.loc["kd", "p"])


def test_pairs_are_matched_by_seed_not_by_order(runs):
    shuffled = runs.sample(frac=1, random_state=0)
    a = summarise(runs, against="kd").set_index("method")
    b = summarise(shuffled, against="kd").set_index("method").loc[a.index]
    pd.testing.assert_series_equal(a["p"], b["p"])
    missing = runs[~((runs["method"] == "kd") & (runs["seed"] == 0))]
    difference = summarise(missing, against="kd").set_index("method").loc["rcka", "difference"]
    assert difference == pytest.approx(np.mean(np.subtract(LAST["rcka"][1:], LAST["kd"][1:])))


def test_one_seed_and_equal_differences_have_no_p(runs):
    one = summarise(runs[runs["seed"] == 0], against="kd")
    assert one["p"].isna().all()
    assert one["last_sd"].isna().all()
    same = runs.assign(last=np.where(runs["method"] == "rcka", 71.0, 70.0))
    assert summarise(same, against="kd")["p"].isna().all()
    with pytest.raises(ValueError, match="'dist' to compare with is not among kd, rcka, fcka"):
        summarise(runs, against="dist")


def test_markdown_and_latex(runs):
    table = summarise(runs, [recipe(rcka=74.0)], against="kd")
    lines = format_markdown(table, "kd").splitlines()
    assert lines[0] == "| recipe | method | seeds | last | best | paper | minus KD | p (Holm) |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| res_a | KD | 4 | 70.62 ± 1.38 | 71.62 ± 1.38 |  |  |  |"
    assert lines[3].startswith("| res_a | RCKA | 4 | **72.25 ± 0.65** | **73.25 ± 0.65** | 74.00 | +1.62 | 0.")
    latex = format_latex(table, "kd").splitlines()
    assert latex[0] == r"\begin{tabular}{llrrrrrr}"
    assert latex[2] == r"recipe & method & seeds & last & best & paper & minus KD & p (Holm) \\"
    assert latex[5].startswith(r"res\_a & RCKA & 4 & \textbf{72.25 $\pm$ 0.65} & \textbf{73.25 $\pm$ 0.65} & 74.00")
    single = format_markdown(summarise(runs[(runs["seed"] == 0) & (runs["method"] == "kd")]))
    assert single.splitlines()[2] == "| res_a | KD | 1 | 70.00 | 71.00 |"


def test_files(runs, tmp_path):
    paths = save_table(summarise(runs, against="kd"), runs, tmp_path / "table", "kd")
    assert [path.name for path in paths] == ["table.csv", "table.md", "table.tex", "runs.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(paths[3]), runs)
    assert pd.read_csv(paths[0])["method"].tolist() == ["kd", "rcka", "fcka"]


def test_only_missing_cells_are_run(monkeypatch):
    done, ran = {("kd", 0), ("kd", 1)}, []

    class Result:
        last_accuracy, best_accuracy = 0.5, 0.75

    def cell(chosen):
        return chosen.loss.name, chosen.train.seed

    def made(chosen, resume, progress):
        ran.append((*cell(chosen), resume, progress))
        return Result

    monkeypatch.setattr(
        tables, "finished", lambda c: {"last_accuracy": 0.25, "best_accuracy": 0.5} if cell(c) in done else None
    )
    monkeypatch.setattr(tables, "run_recipe", made)
    found = run_grid([recipe()], ["kd", "rcka"], range(2), progress=False)
    assert ran == [("rcka", 0, True, False), ("rcka", 1, True, False)]
    assert found["last"].tolist() == [25.0, 25.0, 50.0, 50.0]
    ran.clear()
    run_grid([recipe()], ["kd"], range(2), resume=False)
    assert len(ran) == 2
    with pytest.raises(ValueError, match="different names, got res_a, res_a"):
        run_grid([recipe(), recipe()], ["kd"], range(1))
    with pytest.raises(ValueError, match="no method 'rkca'"):
        run_grid([recipe()], ["kd", "rkca"], range(1))


def test_names_cannot_become_formulas_or_commands(tmp_path):
    name = "=1+1 & 50% $x$ #_{~^\\"
    runs = pd.DataFrame({"recipe": name, "method": ["-kd"], "seed": [0], "last": [-1.5], "best": [70.0]})
    save_table(summarise(runs), runs, tmp_path)
    for file in ("runs.csv", "table.csv"):
        saved = pd.read_csv(tmp_path / file)
        assert saved["recipe"].tolist() == [f"'{name}"]
        assert saved["method"].tolist() == ["'-kd"]
    assert pd.read_csv(tmp_path / "runs.csv")["last"].tolist() == [-1.5]
    row = (tmp_path / "table.tex").read_text().splitlines()[4]
    expected = r"=1+1 \& 50\% \$x\$ \#\_\{\textasciitilde{}\textasciicircum{}\textbackslash{} & -kd & 1 & "
    assert row.startswith(expected)


def test_the_bar_of_a_run_names_method_and_seed(tmp_path, capsys):
    content = recipe().model_dump() | {"output": {"directory": tmp_path}}
    small = Recipe.model_validate(content | {"train": {"epochs": 1, "batch_size": 64}})
    small = small.model_copy(update={"data": small.data.model_copy(update={"train_per_class": 4, "size": 8})})
    run_grid([small], ["ce"], [3, 4])
    bars = capsys.readouterr().err
    assert "ce, seed 3: epoch 1/1" in bars
    assert "ce, seed 4: epoch 1/1" in bars
