"""With sync_batchnorm, two processes on one GPU give the weights of one process; without it they do not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_processes_on_one_gpu.py")


def test_two_processes_equal_one(tmp_path):
    sys.path.insert(0, str(SCRIPT.parent))
    from two_processes_on_one_gpu import go

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path],
            env={**os.environ, **shared, "MASTER_PORT": port, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    expected = {name: value.cpu() for name, value in go().student.state_dict().items()}
    worst = {}
    for kind in ("alone", "all"):
        saved = load_file(tmp_path / kind / "last.safetensors")
        worst[kind] = max(float((saved[name] - value).abs().max()) for name, value in expected.items())
    assert worst["all"] < 1e-5
    assert worst["alone"] > 1e-3
