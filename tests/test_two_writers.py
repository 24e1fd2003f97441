"""Threads and processes that write the same path never leave a file that cannot be read."""

import threading

import numpy as np
import pandas as pd
import pytest
from quick_processes import CONTEXT

import cka_probe as cp
from cka_probe.comparison.signature_files import Signature
from cka_probe.distill.recipes.tables import save_table, summarise
from cka_probe.distill.training.checkpoints import load_checkpoint, save_checkpoint
from cka_probe.plotting.report import write_report


def matrix(number):
    layers = tuple(f"layer{i}" for i in range(20))
    return cp.SimilarityMatrix(np.full((20, 20), number / 10), layers, layers)


def save_signature(folder, number):
    grams, scales = (np.full((2, 36), number / 10),), (np.ones(2),)
    texts = {"order": "o", "kernel": "linear", "estimator": "biased", "pooling": "auto", "notes": (), "samples": (8,)}
    Signature(name=str(number), layers=("a", "b"), grams=grams, scales=scales, **texts).save(folder / "s.npz")


def save_rows(folder, number):
    runs = pd.DataFrame({"recipe": "a", "method": ["kd"], "seed": [0], "last": [number], "best": [number]})
    save_table(summarise(runs), runs, folder)


# name: (write, read)
FILES = {
    "matrix": (
        lambda folder, number: matrix(number).save(folder / "m.npz"),
        lambda folder: cp.SimilarityMatrix.load(folder / "m.npz").values.ravel().tolist(),
    ),
    "signature": (save_signature, lambda folder: Signature.load(folder / "s.npz").grams[0].ravel().tolist()),
    "checkpoint": (
        lambda folder, number: save_checkpoint(folder, {"numbers": [number / 10] * 50}),
        lambda folder: (load_checkpoint(folder) or {"numbers": [0.1]})["numbers"],
    ),
    "report": (
        lambda folder, number: write_report(matrix(number), folder / "r.html"),
        lambda folder: [float((folder / "r.html").read_text().rstrip().endswith("</html>"))],
    ),
    "table": (save_rows, lambda folder: pd.read_csv(folder / "runs.csv")["last"].tolist()),
}


def write_often(name, folder, number, times=8):
    for _ in range(times):
        FILES[name][0](folder, number)


@pytest.mark.parametrize("name", FILES)
def test_what_is_read_is_what_one_of_them_wrote(name, tmp_path):
    write, read = FILES[name]
    write(tmp_path, 1)
    errors = []

    def in_thread(number):
        try:
            write_often(name, tmp_path, number)
        except BaseException as error:
            errors.append(error)

    process = CONTEXT.Process(target=write_often, args=(name, tmp_path, 2))
    writers = [process, *(threading.Thread(target=in_thread, args=(number,)) for number in (3, 4))]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(set(read(tmp_path))) == 1
    for writer in writers:
        writer.join()
    assert errors == []
    assert process.exitcode == 0
    assert len(set(read(tmp_path))) == 1
    assert not list(tmp_path.glob(".*"))
