"""Two gloo processes have the same losses and weights as one process, and none waits for a lost one for ever."""

import time

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from two_processes import OPTIONS, go, regress, start, tag

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    processes = start(folder)
    try:
        for process in processes:
            process.join(timeout=240)
    finally:
        for process in processes:
            process.kill()
    said = [(folder / f"said{rank}").read_text() for rank in range(2)]
    assert [process.exitcode for process in processes] == [0, 0], "\n".join(said)
    return folder


@pytest.fixture(scope="module")
def one():
    return go()


@pytest.mark.parametrize("kind", ["plain", "exact", "cached"])
def test_two_processes_equal_one(two, one, kind):
    saved = load_file(two / kind / "last.safetensors")
    assert set(saved) == set(one.student.state_dict())
    history = pd.read_csv(two / kind / "history.csv")
    for name in ("train_loss", "cross_entropy", "features", "logits"):
        np.testing.assert_allclose(history[name], one.history[name], rtol=1e-5)
    np.testing.assert_allclose(history["test_accuracy"], one.history["test_accuracy"])
    for name, value in one.student.state_dict().items():
        np.testing.assert_allclose(saved[name], value, atol=1e-6, rtol=1e-5)


def test_clipped_steps_averages_and_evaluations_of_two_processes_equal_those_of_one(two):
    expected = go(**OPTIONS)
    history, saved = pd.read_csv(two / "options" / "history.csv"), load_file(two / "options" / "last.safetensors")
    assert history["step"].tolist() == expected.history["step"].tolist()
    for name in ("train_loss", "lr", "test_loss", "test_top2", "test_accuracy"):
        np.testing.assert_allclose(history[name], expected.history[name], rtol=1e-5)
    for name, value in expected.student.state_dict().items():
        np.testing.assert_allclose(saved[name], value, atol=1e-6, rtol=1e-5)


def test_diagnostics_of_the_shares_are_those_of_the_whole(two, one):
    found = pd.read_csv(two / "plain" / "diagnostics.csv")
    expected = one.diagnostics
    assert found["quantity"].tolist() == expected["quantity"].tolist()
    gradients = expected["quantity"].str.startswith("gradient")
    np.testing.assert_allclose(found["value"][gradients], expected["value"][gradients], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("task", "kind"), [(tag, "tokens"), (regress, "regression")])
def test_tokens_and_numbers_are_learned_as_by_one_process(two, task, kind):
    one, saved, history = task(), load_file(two / kind / "last.safetensors"), pd.read_csv(two / kind / "history.csv")
    for name in one.history.columns.drop(["seconds"]):
        np.testing.assert_allclose(history[name], one.history[name], rtol=1e-5, err_msg=name)
    for name, value in one.student.state_dict().items():
        np.testing.assert_allclose(saved[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("what", ["killed", "silent"])
def test_one_process_that_is_lost_ends_the_other(tmp_path, what):
    processes = start(tmp_path, what)
    try:
        processes[0].join(timeout=120)
        seconds = time.time() - (tmp_path / "lost").stat().st_mtime
    finally:
        for process in processes:
            process.kill()
            process.join()
    output = (tmp_path / "said0").read_text()
    assert processes[0].exitcode == 1, output
    assert "Another process of this run has ended, or did not answer in time" in output
    assert seconds < 20
