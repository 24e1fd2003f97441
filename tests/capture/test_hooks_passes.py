"""What belongs to one pass of a network: a root that runs twice or through a method, and modules that others share."""

import threading

import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from torch import nn
from torch.utils.checkpoint import checkpoint

import cka_probe as cp
from cka_probe.capture.hooks import Probe


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def data(seed=0, n=20):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def batches(count=3):
    return [data(seed) for seed in range(count)]


def outputs(net, x, names=None):
    """Outputs of the layers by name, and of the network as "model", in float64."""
    kept = cloned(net, x)
    with torch.no_grad():
        kept["model"] = net.eval()(x).double().numpy()
    return {name: kept[name] for name in names or kept}


# --- the network runs twice in one forward ------------------------------------------------------------------------


def both_views(net, batch):
    return net(batch), net(2 * batch)


def test_a_network_that_runs_twice_has_each_layer_twice():
    """As the two views of SimCLR."""
    net = network()
    result = cp.compare(net, net, batches(), layers=["leaves", ""], forward=both_views, progress=False)
    first = ["0", "1", "2", "model"]
    assert list(result.rows) == [*first, *(f"{name}#2" for name in first)]
    oracle = []
    for x in batches():
        views = [outputs(net, x, first), outputs(net, 2 * x, first)]
        oracle.append({**views[0], **{f"{name}#2": value for name, value in views[1].items()}})
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


def test_a_call_that_only_some_batches_make_is_left_out_with_a_note():
    net, big = network(), data(9, n=24)

    def forward(model, batch):
        model(batch)
        if len(batch) == len(big):
            model(2 * batch)

    result = cp.compare(net, network(1), [*batches(), big], forward=forward, progress=False)
    assert list(result.rows) == list(result.columns) == ["0", "1", "2"]
    assert any("'0#2', '1#2', '2#2' were left out" in note for note in result.notes)


class Recursive(nn.Module):
    """Runs itself on what it computed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6)

    def forward(self, x, depth=2):
        x = torch.tanh(self.linear(x))
        return self(x, depth - 1) if depth else x


def test_a_network_that_calls_itself_has_one_row_for_each_call():
    net, x = Recursive(), data()
    assert list(cp.extract(net, x, layers=["linear", ""], progress=False)) == [
        *("linear", "linear#2", "linear#3"),
        *("model", "model#2", "model#3"),
    ]
    with Probe(net, ["linear", ""]) as probe:
        net(x)
        net(x)
    assert len(probe.features) == 6


def test_the_network_and_a_part_that_is_called_model_have_two_names():
    """As LlamaForCausalLM, whose `model` is a part of it."""

    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.model(x)))

    net, x = Causal(), data()
    features = cp.extract(net, x, layers=["model", ""], progress=False)
    assert {name: value.shape[1] for name, value in features.items()} == {"model": 5, "(model)": 3}
    assert list(cp.extract(net, x, layers=features.keys(), progress=False)) == ["model", "(model)"]


# --- the network runs through a method of its own -----------------------------------------------------------------


class WithMethods(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.body, self.head = network(seed), nn.Linear(4, 2)

    def forward_features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.forward_features(x))


def test_forward_through_a_method_runs_every_batch():
    nets = WithMethods(0), WithMethods(1)
    result = cp.compare(
        *nets, batches(), exclude="head", forward=lambda model, batch: model.forward_features(batch), progress=False
    )
    oracle = [[cloned(net.body, x) for x in batches()] for net in nets]
    assert list(result.rows) == ["body.0", "body.1", "body.2"]
    assert_allclose(result.values, reference_cka(*oracle), atol=1e-6)


def test_a_probe_tells_passes_through_a_method_apart_when_the_caller_says_so():
    net = WithMethods()
    with Probe(net) as probe:
        for x in batches():
            with probe.one_pass():
                net.forward_features(x)
            assert list(probe.features) == ["body.0", "body.1", "body.2"]
            assert torch.equal(probe.features["body.2"], net.body(x))
    assert probe.silent == ["head"]


# --- other networks that share modules ----------------------------------------------------------------------------


class Whole(nn.Module):
    def __init__(self, backbone, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone, self.head = backbone, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_network_and_its_backbone(scope, turned):
    backbone = network()
    whole = Whole(backbone)
    pair = (backbone, whole) if turned else (whole, backbone)
    result = cp.compare(*pair, batches(), scope=scope, progress=False)
    oracle = [[cloned(net, x) for x in batches()] for net in pair]
    if scope == "minibatch":
        assert_allclose(result.values, reference_cka(*oracle), atol=1e-6)
    assert len(result.rows) + len(result.columns) == 7


def test_two_heads_on_one_backbone_in_compare_many():
    backbone = network()
    nets = {"a": Whole(backbone, 1), "b": Whole(backbone, 2), "backbone": backbone}
    result = cp.compare_many(nets, batches(), progress=False)
    oracle = [
        {f"{name}.{layer}": value for name, net in nets.items() for layer, value in cloned(net, x).items()}
        for x in batches()
    ]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


def test_a_teacher_that_runs_in_the_forward_of_a_student_with_the_same_backbone():
    """The calls of the shared backbone by the teacher count as calls of the student: its forward makes them."""
    backbone = network()
    student, teacher = Whole(backbone, 1), Whole(backbone, 2)
    result = cp.compare(
        student, teacher, batches(), forward=lambda net, x: net(x), layers=["backbone.0", "head"], progress=False
    )
    assert result.rows == result.columns == ("backbone.0", "head")


def test_probes_of_a_network_and_of_its_backbone_each_show_their_own_latest_pass():
    backbone, x, y = network(), data(0), data(1)
    whole = Whole(backbone)
    with Probe(whole) as outer, Probe(backbone) as inner:
        whole(x)
        assert list(outer.features) == ["backbone.0", "backbone.1", "backbone.2", "head"]
        assert list(inner.features) == ["0", "1", "2"]
        backbone(y)
    assert torch.equal(outer.features["backbone.0"], backbone[0](x))
    assert torch.equal(inner.features["0"], backbone[0](y))
    assert "backbone.0#2" not in outer.features


def test_a_comparison_inside_the_block_of_a_probe_does_not_reach_it_twice():
    net, x = network(), data()
    with Probe(net) as probe:
        net(x)
        before = dict(probe.features)
        cp.compare(net, network(1), batches(), forward=lambda model, b: model[1](model[0](b)), progress=False)
    assert probe.features.keys() == before.keys()
    assert all(torch.equal(probe.features[name], before[name]) for name in before)


def test_gradient_checkpointing_does_not_record_a_layer_again_in_the_backward():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = network(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    net = Checkpointed()
    with Probe(net) as probe:
        net(data()).sum().backward()
    assert list(probe.features) == ["body.0", "body.1", "body.2", "head"]


def test_what_another_thread_runs_is_not_recorded():
    net, x = network(), data()

    def run():
        with torch.no_grad():
            net(data(5))

    with Probe(net) as probe:
        net(x)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(probe.features["0"], net[0](x))

    def forward(model, batch):
        beside = threading.Thread(target=run)
        beside.start()
        beside.join()
        return model(batch)

    result = cp.compare(net, net, batches(), forward=forward, progress=False)
    assert list(result.rows) == ["0", "1", "2"]
    assert_allclose(result.values, reference_cka([cloned(net, b) for b in batches()]), atol=1e-6)


def test_a_pass_that_fails_does_not_disturb_the_next():
    net = network()
    with Probe(net) as probe:
        with pytest.raises(RuntimeError):
            net(torch.ones(3, 7))
        net(data())
        assert list(probe.features) == ["0", "1", "2"]
        net(data(1))
    assert torch.equal(probe.features["0"], net[0](data(1)))
