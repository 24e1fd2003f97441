"""compare() restores models and random states, also after an error or Ctrl-C."""

from functools import partial

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from small_networks import image_batches, small_network
from torch import nn

import cka_probe as cp

compared = partial(cp.compare, progress=False)


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x):
        self.calls += 1
        torch.rand(1)
        if self.calls == 4:  # after the runs of the first batch that look for random numbers
            raise self.error
        return x


def mixed_modes(net):
    """The network in train mode with one part in eval mode, as in fine-tuning."""
    net.train()
    net[1].eval()
    return net


def hooks_of(net):
    return [
        (name, kind, len(getattr(module, kind)))
        for name, module in net.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
    ]


@pytest.mark.parametrize("error", [RuntimeError("the GPU fell over"), KeyboardInterrupt(), None])
def test_modes_hooks_and_random_states_are_restored(error):
    net = mixed_modes(nn.Sequential(nn.Linear(5, 5), nn.Dropout(), Fails(error) if error else nn.Tanh()))
    net[0].register_forward_hook(lambda *_: None)
    modes, hooks = [m.training for m in net.modules()], hooks_of(net)
    batches = [torch.randn(8, 5) for _ in range(4)]
    torch.manual_seed(7)
    expected, state = torch.rand(3), torch.manual_seed(7).get_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is what must not change
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="the GPU fell over"):
            compared(net, net, batches)
    else:
        compared(net, net, batches)
    assert [m.training for m in net.modules()] == modes
    assert hooks_of(net) == hooks
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002 - as above
    assert torch.equal(torch.rand(3), expected)


def test_ctrl_c_gives_the_partial_result():
    class Stop(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return x

    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), Stop())
    batches = [torch.randn(8, 5, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    result = compared(net, net, batches)
    assert result.meta["partial"]
    assert result.meta["batches"] == 3
    assert "stopped by the user after 3 batches: a partial result" in result.notes
    oracle = [cloned(net[:2], b) for b in batches[:3]]
    assert_allclose(result.values[:2, :2], reference_cka(oracle), atol=1e-6)
    assert np.isfinite(result.standard_error).all()


def test_ctrl_c_in_the_first_batch_raises_keyboard_interrupt():
    class Stop(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    net = nn.Sequential(nn.Linear(5, 5), Stop())
    with pytest.raises(KeyboardInterrupt):
        compared(net, net, [torch.randn(8, 5)])
    assert not any(count for _, _, count in hooks_of(net))


def test_dropout_is_off_and_batch_norm_statistics_do_not_change():
    net = small_network(0)
    net.append(nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (compared(net, net, image_batches()) for _ in range(2))
    assert np.array_equal(first.values, second.values)
    assert net.training
    assert net[-1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert_allclose(first.values, reference_cka([cloned(net, b) for b in image_batches()]), atol=1e-6)


def test_parameters_get_no_gradient():
    net = small_network(0)
    compared(net, net, image_batches())
    assert all(p.grad is None for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())
