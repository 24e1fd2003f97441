"""CKA as a torchmetrics Metric: equal to MinibatchCKA, in one process and in two."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from gloo_threads import gloo_threads
from quick_processes import free_port, start_processes
from torchmetrics import MetricCollection

from cka_probe import RBF, MinibatchCKA
from cka_probe.metrics import CKA


def batches(sizes=(8, 12, 5, 9, 8)):
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for n in sizes:
        x = torch.randn(n, 3, 2, 2, generator=generator)
        pairs.append((x, torch.tanh(x.flatten(1) @ torch.randn(12, 6, generator=torch.Generator().manual_seed(1)))))
    return pairs


def expected(pairs, **options):
    statistics = MinibatchCKA(**options)
    for x, y in pairs:
        statistics.update([x.flatten(1)], [y.flatten(1)])
    return float(statistics.compute()[0, 0])


@pytest.mark.parametrize("options", [{}, {"estimator": "biased"}, {"kernel": RBF()}], ids=["unbiased", "biased", "rbf"])
def test_equals_minibatch_cka(options):
    metric = CKA(**options)
    for x, y in batches():
        metric.update(x, y)
    assert float(metric.compute()) == pytest.approx(expected(batches(), **options), rel=1e-12)
    assert metric.compute().dtype == torch.float64
    assert int(metric.samples) == 42


def test_forward_gives_the_batch_and_reset_forgets():
    metric = CKA()
    for x, y in batches():
        assert float(metric(x, y)) == pytest.approx(expected([(x, y)]), rel=1e-12)
    assert float(metric.compute()) == pytest.approx(expected(batches()), rel=1e-12)
    metric.reset()
    metric.update(*batches()[0])
    assert float(metric.compute()) == pytest.approx(expected(batches()[:1]), rel=1e-12)


def test_collections_pickles_and_state_dicts():
    metrics = MetricCollection({"linear": CKA(), "rbf": CKA(kernel=RBF())})
    for x, y in batches():
        metrics.update(x, y)
    found = pickle.loads(pickle.dumps(metrics)).compute()
    assert float(found["linear"]) == pytest.approx(expected(batches()), rel=1e-12)
    assert float(found["rbf"]) == pytest.approx(expected(batches(), kernel=RBF()), rel=1e-12)
    saved = CKA()
    saved.persistent(True)
    saved.update(*batches()[0])
    state = saved.state_dict()
    other = CKA()
    other.persistent(True)
    other.load_state_dict(state)
    assert float(other.cross) == float(saved.cross)


def test_activations_with_gradients_and_in_half_precision():
    x, y = batches()[1]
    metric = CKA()
    metric.update(x.requires_grad_(), y.to(torch.bfloat16))
    assert not metric.compute().requires_grad
    assert float(metric.compute()) == pytest.approx(expected([(x.detach(), y)]), abs=1e-2)


def test_a_short_last_batch_is_left_out_with_one_warning():
    metric = CKA()
    pairs = batches((8, 9))
    for x, y in pairs:
        metric.update(x, y)
    x, y = batches((3,))[0]
    with pytest.warns(UserWarning, match="leaves out a batch of 3 samples: the unbiased estimator needs at least 4"):
        metric.update(x, y)
    metric.update(x, y)
    metric.update(x[:0], y[:0])
    assert int(metric.left_out) == 6
    assert float(metric.compute()) == pytest.approx(expected(pairs), rel=1e-12)


def test_a_constant_layer_is_nan():
    metric = CKA()
    metric.update(torch.ones(8, 3), torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    assert metric.compute().isnan()


def test_wrong_input_is_named():
    metric = CKA()
    with pytest.raises(ValueError, match="`x` has 5 samples and `y` has 6"):
        metric.update(torch.zeros(5, 2), torch.zeros(6, 2))
    with pytest.raises(ValueError, match="`y` holds NaN"):
        metric.update(torch.zeros(5, 2), torch.full((5, 2), torch.nan))
    with pytest.raises(TypeError, match="`x` must be a tensor, got list"):
        metric.update([1.0], torch.zeros(5, 2))
    with pytest.raises(TypeError, match="`x` must have a real floating dtype"):
        metric.update(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2))
    with pytest.raises(ValueError, match='`estimator` must be "unbiased" or "biased"'):
        CKA(estimator="fair")


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        metric = CKA()
        for x, y in batches()[rank::2]:
            metric.update(x, y)
        torch.save([metric.compute(), float(metric.cross)], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    assert gloo_threads() == []


def test_two_processes_give_the_value_of_one(tmp_path):
    start_processes(worker, (free_port(), str(tmp_path)), 2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for value, _ in both:
        assert float(value) == pytest.approx(expected(batches()), rel=1e-12)
    assert both[0][1] != both[1][1]  # each process keeps its own sums


def test_without_torchmetrics_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torchmetrics' else find(name, *a)\n"
        "import cka_probe.metrics"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "cka_probe.metrics needs torchmetrics, which is not installed: pip install 'cka-probe[distill]'" in run.stderr
    )
