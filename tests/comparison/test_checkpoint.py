"""compare(checkpoint=...): a call that was killed is resumed by the next one, with the identical result."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network

import cka_probe as cp

SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import cka_probe as cp
    from small_networks import image_batches, small_network

    class KilledAt:
        def __iter__(self):
            for index, batch in enumerate(image_batches(50)):
                if index == 45:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

    cp.compare(small_network(0), small_network(1), KilledAt(), checkpoint={path!r}, progress=False)
"""


class Interrupted:
    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __iter__(self):
        for index, batch in enumerate(self.batches):
            if index == self.at:
                raise KeyboardInterrupt
            yield batch


def test_a_killed_comparison_is_resumed_with_the_identical_result(tmp_path):
    path = tmp_path / "run.ckpt"
    script = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parents[1]), path=str(path)))
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.exists()
    nets = small_network(0), small_network(1)
    seen = []
    nets[0].register_forward_hook(lambda *_: seen.append(1))
    resumed = cp.compare(*nets, image_batches(50), checkpoint=path, progress=False)
    assert len(seen) == 11  # 40 of 50 batches were saved, and the first one runs again
    whole = cp.compare(small_network(0), small_network(1), image_batches(50), progress=False)
    np.testing.assert_array_equal(resumed.values, whole.values)
    np.testing.assert_array_equal(resumed.standard_error, whole.standard_error)
    assert not path.exists()


def test_ctrl_c_saves_a_checkpoint_and_returns_the_partial_result(tmp_path):
    path, data = tmp_path / "run.ckpt", image_batches(9)
    nets = small_network(0), small_network(1)
    partial = cp.compare(*nets, Interrupted(data, 6), checkpoint=path, progress=False)
    assert partial.meta["partial"]
    np.testing.assert_allclose(partial.values, cp.compare(*nets, data[:5], progress=False).values, atol=1e-12)
    resumed = cp.compare(*nets, data, checkpoint=path, progress=False)
    np.testing.assert_array_equal(resumed.values, cp.compare(*nets, data, progress=False).values)
    assert not resumed.meta["partial"]


@pytest.fixture
def half_done(tmp_path):
    path = tmp_path / "run.ckpt"
    cp.compare(small_network(0), small_network(1), Interrupted(image_batches(9), 6), checkpoint=path, progress=False)
    return path


def test_a_checkpoint_of_version_0_1_is_refused(half_done):
    with np.load(half_done) as archive:
        header = json.loads(str(archive["header"]))
        sums = {name: archive[name] for name in archive.files if name != "header"}
    del header["identity"]
    with half_done.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **sums)
    with pytest.raises(ValueError, match=r"version 0.1 of cka_probe wrote it.* Delete it to start again"):
        cp.compare(small_network(0), small_network(1), image_batches(9), checkpoint=half_done, progress=False)


def test_a_checkpoint_of_other_samples_is_an_error(half_done):
    with pytest.raises(ValueError, match="made from other samples, or in another order"):
        cp.compare(small_network(0), small_network(1), image_batches(9, seed=5), checkpoint=half_done, progress=False)
    assert half_done.exists()


def test_a_checkpoint_of_another_comparison_is_an_error(half_done):
    nets = small_network(0), small_network(1)
    with pytest.raises(ValueError, match=r"kernel and estimator was unbiased HSIC with Linear.* and is now biased"):
        cp.compare(*nets, image_batches(9), estimator="biased", checkpoint=half_done, progress=False)
    message = r"another comparison: models was 'model_x \(Sequential\), model_y .*' and is now 'a'\. The file"
    with pytest.raises(ValueError, match=message):
        cp.compare_many({"a": nets[0]}, image_batches(9), checkpoint=half_done, progress=False)
    with pytest.raises(ValueError, match="layers of model_x"):
        cp.compare(*nets, image_batches(9), layers=["0", "4"], checkpoint=half_done, progress=False)


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"run\.ckpt is not a checkpoint of a comparison, or is damaged"):
        cp.compare(small_network(0), small_network(1), image_batches(2), checkpoint=path, progress=False)


def test_the_digest_takes_samples_of_any_dtype():
    from cka_probe.capture.streaming import SampleOrder

    digests = set()
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
        order = SampleOrder()
        order.update({"x": torch.ones(3, 4).to(dtype)})
        digests.add(order.hexdigest())
    assert len(digests) == 4  # uint8 and bool have the same bytes
