"""DataParallel, and the averaged weights of ``AveragedModel`` (EMA, SWA): rows have the names of the network inside."""

import torch
from situation import check, check_notes, images
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cka_probe as cp


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))


def test_a_network_in_training_against_its_average():
    net, batches = network(0), [images(7, 8, seed=seed) for seed in (0, 1)]
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(net)  # the first time, it copies
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    average.update_parameters(net)
    result = cp.compare(net, average, batches, progress=False)
    assert result.rows == result.columns == ("0", "1", "2", "3", "4")
    assert result.values[4, 4] < 0.999
    check(result, net, batches, average.module)
    check_notes(result)
    assert average.n_averaged == 2


def test_data_parallel_on_a_cpu():
    net, batches = network(1), [images(7, 8, seed=seed) for seed in (0, 1)]
    result = cp.compare(nn.DataParallel(net), net, batches, progress=False)
    assert result.columns == ("0", "1", "2", "3", "4")
    check(result, net, batches)
    check_notes(result)
