"""A trial on a part of a batch leaves the network as it was."""

import torch
from torch import nn

from cka_probe.capture.trial import FEW, ChanceLengths, loose_lengths, without_trace


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
    def shapes(batch, few):
        assert len(batch) == few == FEW
        return {"samples": (few, 4), "time": (8, few, 4), "fewer time": (5, few, 4), "other": (3, 4)}

    lengths = ChanceLengths()
    lengths.run(torch.zeros(8, 8, 4), 8, shapes)
    assert not lengths.is_chance("samples", (8, 4))
    assert lengths.is_chance("time", (8, 8, 4))
    assert lengths.is_chance("fewer time", (8, 8, 4))
    assert not lengths.is_chance("other", (3, 4))
    assert not lengths.is_chance("unknown", (8, 4))


def test_a_run_that_follows_nothing_says_nothing():
    """The batch holds what could not be cut, and the network ran on all of it."""
    lengths = ChanceLengths()
    lengths.run(torch.zeros(8, 4), 8, lambda _batch, _few: {"layer": (8, 8), "head": (8, 3)})
    assert not lengths.is_chance("layer", (8, 8))


def test_doubtful_layers_are_looked_at_once():
    runs = []

    def shapes(_batch, few):
        runs.append(few)
        return {"plain": (few, 4), "time": (8, few, 4)}

    lengths = ChanceLengths()
    lengths.see("plain", (8, 4))
    assert lengths.found_later(torch.zeros(8, 4), 8, shapes) == []
    assert not runs
    lengths.see("time", (8, 8, 4))
    assert lengths.found_later(torch.zeros(8, 4), 8, shapes) == [("time", 8)]
    assert lengths.found_later(torch.zeros(8, 4), 8, shapes) == []
    assert runs == [FEW]


class Rescales(nn.Linear):
    """Halves its weights in its first forward in eval mode and remembers it, as RWKV does."""

    def __init__(self):
        super().__init__(3, 3)
        self.rescaled = False

    def forward(self, x):
        if not (self.training or self.rescaled):
            with torch.no_grad():
                self.weight.div_(2)
            self.rescaled = True
        return super().forward(x)


def test_an_attribute_stays_beside_the_weights_that_changed_with_it():
    net = Rescales().eval()
    weight = net.weight.detach().clone()
    with without_trace(net):
        net(torch.zeros(2, 3))
    net(torch.zeros(2, 3))
    assert torch.equal(net.weight, weight / 2), "halved once, not twice"


def test_weights_outside_of_layers_of_torch():
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes, self.layer, self.norm = nn.Parameter(torch.zeros(7, 3)), nn.Linear(11, 13), nn.BatchNorm1d(5)
            self.register_buffer("nothing", None)

    assert loose_lengths(Codes()) == {7, 3}
    assert loose_lengths(nn.Sequential(nn.Linear(11, 13), nn.BatchNorm1d(5))) == set()
