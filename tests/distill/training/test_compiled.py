"""Names and graphs of compiled networks."""

import torch
from small_runs import network
from torch import nn

from cka_probe.distill.taps.tapped_model import TappedModel
from cka_probe.distill.training.compiled import is_compiled, plain_names, reset_graphs, uncompiled


def test_the_network_inside_and_the_names_of_its_weights():
    model = network(1)
    outer = torch.compile(model, backend="eager")
    assert uncompiled(outer) is model
    assert uncompiled(model) is model
    assert plain_names(outer.state_dict()).keys() == model.state_dict().keys()
    nested = nn.Sequential(outer)
    assert "0.stem.weight" in plain_names(nested.state_dict())
    in_place = network(1)
    in_place.compile(backend="eager")
    assert [is_compiled(one) for one in (outer, in_place, nested, model)] == [True, True, False, False]


def test_taps_fire_in_a_network_that_was_compiled_and_run_before():
    x = torch.randn(4, 1, 6, 6)
    compiled, plain = torch.compile(network(1), backend="aot_eager"), network(1)
    compiled(x)
    reset_graphs(None, compiled)
    with TappedModel(compiled, ["norm", "stem"]) as one, TappedModel(plain, ["norm", "stem"]) as other:
        for _ in range(2):  # the in-place ReLU after the batch norm must not change its activation
            found, expected = one(x), other(x)
            found.features[0].sum().backward()
            for a, b in zip((found.logits, *found.features), (expected.logits, *expected.features), strict=True):
                torch.testing.assert_close(a, b)
    assert one.model.stem.weight.grad is not None


def test_taps_of_a_compiled_network_break_no_graph():
    torch.compiler.reset()
    with TappedModel(torch.compile(network(1), backend="aot_eager", fullgraph=True), ["norm"]) as tapped:
        assert tapped(torch.randn(4, 1, 6, 6)).features[0].shape == (4, 4, 6, 6)
