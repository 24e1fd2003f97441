"""Two and three processes on shards of the data give the result of one process."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo_threads import gloo_threads
from quick_processes import free_port, start_processes
from small_networks import image_batches, small_network

import cka_probe as cp


def batches():
    return [*image_batches(5), *image_batches(1, size=7, seed=1)]


def worker(rank: int, world: int, port: int, folder: str, per_rank: list[list[int]]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        data = cp.Shard(batches()) if not per_rank else [batches()[i] for i in per_rank[rank]]
        result = cp.compare(small_network(0), small_network(1), data, distributed=True, progress=False)
        result.save(f"{folder}/{rank}.npz")
    finally:
        dist.destroy_process_group()
    assert gloo_threads() == []


@pytest.mark.parametrize(
    ("world", "per_rank"),
    [(2, []), (2, [[0, 1, 2, 3, 4, 5], []]), (3, [[5], [], [4, 3, 2, 1, 0]])],
    ids=["every other batch", "a rank without data", "uneven shards"],
)
def test_shards_give_the_result_of_one_process(world, per_rank, tmp_path):
    start_processes(worker, (world, free_port(), str(tmp_path), per_rank), world)
    alone = cp.compare(small_network(0), small_network(1), batches(), progress=False)
    for rank in range(world):
        result = cp.SimilarityMatrix.load(tmp_path / f"{rank}.npz")
        np.testing.assert_allclose(result.values, alone.values, atol=1e-10, rtol=0)
        np.testing.assert_allclose(result.standard_error, alone.standard_error, atol=1e-10, rtol=0)
        assert result.meta["samples"] == alone.meta["samples"] == 67
        assert result.rows == alone.rows


def test_shards_hold_each_batch_once():
    shards = [list(cp.Shard(range(7), rank=rank, world=3)) for rank in range(3)]
    assert sorted(batch for shard in shards for batch in shard) == list(range(7))


def test_a_shard_without_a_valid_rank_is_an_error():
    with pytest.raises(RuntimeError, match="start with torchrun"):
        cp.Shard([1, 2])
    with pytest.raises(ValueError, match="`rank` must be between 0 and world - 1, got 3 of 3"):
        cp.Shard([1, 2], rank=3, world=3)
