"""Two gloo processes have the same losses and weights as one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from two_processes import OPTIONS, go, regress, tag

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).parents[1] / "two_processes.py"
    processes = [
        subprocess.Popen(
            [sys.executable, script, folder],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


@pytest.fixture(scope="module")
def one():
    return go()


@pytest.mark.parametrize("kind", ["plain", "exact"])
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
