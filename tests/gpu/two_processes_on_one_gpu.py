"""One of two gloo processes that train on the same GPU. The environment has RANK, WORLD_SIZE, ... as for torchrun."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parents[1] / "distill"))
from small_runs import images, network, run


def go(folder=None, **options):
    student = network(1)
    result = run(student, train=images(40), batch_size=8, learning_rate=0.05, output_dir=folder, **options)
    assert type(student.norm) is torch.nn.BatchNorm2d
    return result


if __name__ == "__main__":
    # nccl refuses two processes on one GPU, and accelerate must know that it gathers by gloo.
    PartialState(backend="gloo")
    for name, wanted in (("alone", False), ("all", True)):
        go(Path(sys.argv[1]) / name, sync_batchnorm=wanted)
    torch.distributed.destroy_process_group()
