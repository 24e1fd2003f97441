"""Modules whose own `train` or `eval` does more than set the mode are as before after the block, bit for bit."""

import copy

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.modes import evaluated, frozen, modes_restored


class MergingLinear(nn.Linear):
    """LoRA as in loralib: eval() adds the low-rank product to the weight, train() subtracts it."""

    def __init__(self, width):
        super().__init__(width, width)
        self.a, self.b = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(width, 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode and self.merged:
            self.weight.data -= self.b @ self.a
        elif not mode and not self.merged:
            self.weight.data += self.b @ self.a
        self.merged = not mode
        return self

    def forward(self, x):
        out = nn.functional.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.a.T @ self.b.T


class MergingWrapper(nn.Module):
    """The weight that changes belongs to a child, and is replaced by a new parameter."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.delta = nn.Linear(width, width), nn.Parameter(torch.randn(width, width))
        self.plain = None

    def train(self, mode=True):
        if mode and self.plain is not None:
            self.inner.weight, self.plain = nn.Parameter(self.plain), None
        elif not mode and self.plain is None:
            self.plain = self.inner.weight.detach().clone()
            self.inner.weight = nn.Parameter(self.plain + self.delta.detach())
        return super().train(mode)

    def forward(self, x):
        out = self.inner(x)
        return out if self.plain is not None else out + x @ self.delta.T


class FrozenNorm(nn.Module):
    """A detector's backbone: its batch norm stays in eval mode, and its stem gets no gradient."""

    def __init__(self, width):
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width)
        self.switched = 0

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        for parameter in self.stem.parameters():
            parameter.requires_grad = False
        self.switched += 1
        return self

    def forward(self, x):
        return self.head(self.norm(self.stem(x)))


class Averaged(nn.Module):
    """eval() swaps the averaged weights in; train() swaps them out."""

    def __init__(self, width):
        super().__init__()
        self.live, self.swapped = nn.Linear(width, width), False
        self.register_buffer("average", torch.randn(width, width))

    def _swap(self):
        weight = self.live.weight.data
        self.live.weight.data, self.average = self.average, weight
        self.swapped = not self.swapped

    def train(self, mode=True):
        if mode and self.swapped:
            self._swap()
        return super().train(mode)

    def eval(self):
        super().train(False)
        if not self.swapped:
            self._swap()
        return self

    def forward(self, x):
        return self.live(x)


def disabled_train(self, mode=True):
    return self


def with_switched_off_part(width):
    """Latent diffusion replaces `train` of its frozen encoder by a function that does nothing."""
    net = nn.Sequential(nn.Linear(width, width).eval(), nn.BatchNorm1d(width))
    net[0].train = disabled_train.__get__(net[0])
    return net


KINDS = [MergingLinear, MergingWrapper, FrozenNorm, Averaged, with_switched_off_part]


def everything(net):
    """All that must be as before: bits, objects, flags, modes, plain attributes, gradients."""
    return {
        "tensors": {
            name: (tensor.detach().clone().view(torch.uint8), id(tensor), tensor.data_ptr(), tensor.requires_grad)
            for name, tensor in [*net.named_parameters(), *net.named_buffers()]
            if tensor.ndim
        },
        "modes": {name: module.training for name, module in net.named_modules()},
        "plain": {
            (name, key): value
            for name, module in net.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, int | float | bool | None)
        },
        "gradients": {name: p.grad if p.grad is None else p.grad.clone() for name, p in net.named_parameters()},
    }


def assert_same(now, before):
    assert now["modes"] == before["modes"]
    assert now["plain"] == before["plain"]
    for name, (bits, *rest) in before["tensors"].items():
        assert torch.equal(now["tensors"][name][0], bits), name
        assert now["tensors"][name][1:] == tuple(rest), name
    for name, gradient in before["gradients"].items():
        found = now["gradients"][name]
        assert (found is None) if gradient is None else torch.equal(found, gradient), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("block", [evaluated, frozen])
def test_weights_flags_and_modes_have_the_same_bits_afterwards(kind, error, block):
    torch.manual_seed(0)
    net = nn.Sequential(kind(6), nn.Dropout(), nn.BatchNorm1d(6), kind(6))
    net.train()
    net[2].eval()
    net[3].eval()  # this part is frozen: it stays in eval mode while the rest trains
    net[0](torch.randn(8, 6)).sum().backward()
    before = everything(net)
    with pytest.raises(error) if error else evaluated(), block(net):
        assert not net[0].training
        net(torch.randn(8, 6))
        if error:
            raise error
    assert_same(everything(net), before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_that_goes_on_after_a_comparison_gives_the_same_losses(kind):
    def losses(interrupted):
        torch.manual_seed(0)
        net = nn.Sequential(kind(6), nn.Dropout(), nn.BatchNorm1d(6), kind(6), nn.Linear(6, 2))
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
        reference, data, found = copy.deepcopy(net), torch.randn(16, 6), []
        for step in range(6):
            optimizer.zero_grad()
            loss = net(torch.randn(12, 6)).square().mean()
            if interrupted and step % 2:
                cp.compare(reference, net, [data], progress=False)  # between the forward and its backward
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses(interrupted=True) == losses(interrupted=False)


def test_a_model_in_eval_mode_is_not_switched():
    net = FrozenNorm(4).eval()
    count = net.switched
    with evaluated(net):
        assert net.switched == count
    assert net.switched == count


def test_modes_are_put_back_by_the_modules_own_method_and_trained_weights_stay():
    net = nn.Sequential(MergingLinear(4))
    with modes_restored(net):
        net.eval()
        assert net[0].merged
        net[0].bias.data.fill_(7.0)
    assert net[0].training
    assert not net[0].merged
    assert net[0].bias.tolist() == [7.0] * 4


def test_modes_are_restored_even_if_a_module_refuses():
    class Refuses(nn.Linear):
        def train(self, mode=True):
            if mode and not self.training:
                raise RuntimeError("cannot go back")
            return super().train(mode)

    net = nn.Sequential(Refuses(2, 2), nn.Dropout())
    with pytest.raises(RuntimeError, match="cannot go back"), evaluated(net):
        pass
    assert all(module.training for module in net.modules())
