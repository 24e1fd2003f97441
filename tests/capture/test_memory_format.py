"""Channels last in memory for the time of a run."""

import copy

import pytest
import torch
from small_runs import network
from torch import nn

from cka_probe.capture.memory_format import channels_last

LAST = torch.channels_last


def strides(model):
    return [value.stride() for value in model.state_dict(keep_vars=True).values()]


@pytest.mark.parametrize("wanted", [True, False])
def test_filters_and_images_have_their_channels_last_inside_and_everything_is_given_back(wanted):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    before, values = strides(model), copy.deepcopy(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    seen = []
    handle = model[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def inside():
        with channels_last([model], wanted):
            assert model[0].weight.is_contiguous(memory_format=LAST) == wanted
            torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    handle.remove()
    assert seen[0].is_contiguous(memory_format=LAST) == wanted
    assert strides(model) == before
    assert parameters == [id(parameter) for parameter in model.parameters()]
    assert not model._forward_pre_hooks
    assert torch.equal(model[0].weight, values["0.weight"])
    assert x.is_contiguous()


def test_a_network_that_has_its_channels_last_already_keeps_them():
    model = nn.Conv2d(3, 8, 3).to(memory_format=LAST)
    with channels_last([model]):
        pass
    assert model.weight.is_contiguous(memory_format=LAST)


def test_words_and_dicts_pass_through():
    class Keyword(nn.Module):
        def forward(self, pixels, words, more):
            assert pixels.is_contiguous(memory_format=LAST)
            assert more["pixels"].is_contiguous(memory_format=LAST)
            return words

    model = Keyword()
    words = torch.zeros(2, 5, dtype=torch.long)
    pixels = torch.randn(2, 3, 4, 4)
    with channels_last([model]):
        assert model(pixels, words=words, more={"pixels": pixels}) is words


def test_training_goes_on_with_the_same_optimiser_after_the_block():
    model = network(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        model(torch.ones(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()

    with channels_last([model]):
        step()
    step()
    assert model.stem.weight.is_contiguous()
