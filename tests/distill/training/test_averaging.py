"""The moving average of the weights against a loop written out by hand."""

import pytest
import torch
from small_runs import network
from torch import nn

from cka_probe.distill.training.averaging import WeightAverage


def train(model, average=None, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        yield model.state_dict()
        if average is not None:
            average.update()


def test_weights_and_running_statistics_equal_a_loop_by_hand_bit_for_bit():
    model = network(1)
    average = WeightAverage(model, 0.9)
    by_hand = None
    for state in train(model, average):
        if by_hand is None:
            by_hand = {name: value.clone() for name, value in state.items()}
        for name, value in state.items():
            if value.is_floating_point():
                by_hand[name] = torch.lerp(by_hand[name], value, 1 - 0.9)
    for name, value in average.network.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, by_hand[name]), name
    assert average.network.norm.num_batches_tracked == 5


def test_integers_are_those_of_the_network():
    """torch's average of integers is rounded down: the position 7 becomes 6."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.register_buffer("positions", torch.arange(512))
            self.register_buffer("mask", torch.eye(3, dtype=torch.bool))

    model = Positions()
    average = WeightAverage(model, 0.999)
    for _ in range(3):
        average.update()
    assert torch.equal(average.network.positions, torch.arange(512))
    assert torch.equal(average.network.mask, torch.eye(3, dtype=torch.bool))


def test_the_state_goes_on_bit_for_bit():
    whole_model, model = network(1), network(1)
    whole, first = WeightAverage(whole_model, 0.8), WeightAverage(model, 0.8)
    for _ in train(whole_model, whole):
        pass
    steps = train(model, first)
    for _ in range(3):
        next(steps)
    next(steps)
    second = WeightAverage(model, 0.8)
    second.load_state_dict(first.state_dict())
    second.update()
    next(steps)
    second.update()
    for name, value in second.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[name])
    second.give()
    assert torch.equal(model.fc.weight, whole.network.fc.weight)


def test_an_average_without_steps_gives_nothing():
    model = network(1)
    average = WeightAverage(model, 0.8)
    with torch.no_grad():
        model.fc.weight.zero_()
    average.give()
    assert not model.fc.weight.any()


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"`ema` is the decay .* between 0 and 1"):
        WeightAverage(network(1), decay)


def test_a_network_that_cannot_be_copied_is_refused_by_name():
    model = network(1)
    model.file = iter(x for x in ())
    with pytest.raises(ValueError, match=r"`ema` averages .* copy.deepcopy fails on this ConvNet .*leave ema out"):
        WeightAverage(model, 0.9)
