"""A trial on a part of a batch leaves the network as it was."""

import torch
from torch import nn

from cka_probe.capture.trial import FEW, try_fewer_samples, without_trace


class Lazy(nn.Module):
    """Installs a hook in its first forward and remembers that it did, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen, self.calls, self.state = nn.Linear(3, 3), [], 0, None
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        if not getattr(self, "installed", False):
            self.linear.register_forward_hook(lambda _module, _inputs, output: self.seen.append(len(output)))
            self.installed = True
        self.calls += 1
        self.state = self.scale = self.scale + 1
        return self.linear(x)


def test_hooks_attributes_buffers_and_lists_are_as_before():
    net = Lazy()
    with without_trace(net):
        net(torch.zeros(2, 3))
    assert [net.calls, net.state, net.seen, hasattr(net, "installed")] == [0, None, [], False]
    assert not net.linear._forward_hooks
    assert torch.equal(net.scale, torch.ones(3))
    net(torch.zeros(5, 3))
    assert net.seen == [5], "one hook, not two"
    with without_trace(net):
        net(torch.zeros(2, 3))
    assert [net.calls, net.seen] == [1, [5]]
    assert len(net.linear._forward_hooks) == 1


def test_an_axis_that_is_not_as_long_as_the_fewer_samples_holds_no_samples():
    def shapes(_batch, few):
        return {"samples": (few, 4), "time": (8, few, 4), "fewer time": (5, few, 4), "other": (3, 4)}

    trial = try_fewer_samples(torch.zeros(8, 8, 4), 8, shapes)
    assert trial.samples == FEW
    assert not trial.keeps_length("samples", (8, 4))
    assert trial.keeps_length("time", (8, 8, 4))
    assert trial.keeps_length("fewer time", (8, 8, 4))
    assert not trial.keeps_length("other", (3, 4))
    assert not trial.keeps_length("unknown", (8, 4))
