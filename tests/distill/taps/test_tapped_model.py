"""TappedModel: activations keep their graph and their values, and the layers that cannot be tapped are named."""

import pytest
import torch
from small_runs import images, network
from torch import nn

from cka_probe.distill.taps.tapped_model import TappedModel


def test_taps_survive_in_place_operations_and_keep_the_graph():
    student = network(1)
    x = images(8).tensors[0]
    with TappedModel(student, ["norm", "fc"]) as tapped:
        norm, fc = tapped(x).features
    expected = student.norm(student.stem(x))
    assert torch.equal(norm, expected)
    assert (norm < 0).any()
    (norm.sum() + fc.sum()).backward()
    assert student.stem.weight.grad is not None
    assert not student.norm._forward_hooks


def test_taps_copy_only_what_is_changed_in_place():
    student = network(1)
    x = images(8).tensors[0]
    outputs = {}
    for name in ("stem", "norm"):
        student.get_submodule(name).register_forward_hook(lambda _m, _i, o, name=name: outputs.update({name: o}))
    expected = student.norm(student.stem(x))
    with TappedModel(student, ["stem", "norm"]) as tapped:
        for mode in (True, False, True):
            student.train(mode)
            expected = student.norm(student.stem(x)).detach().clone()
            for first in (True, False):
                stem, norm = tapped(x).features
                assert torch.allclose(norm, expected)
                assert norm is not outputs["norm"]
                assert (stem is outputs["stem"]) or first
        with torch.inference_mode():
            stem, norm = tapped(x).features
        assert torch.allclose(norm, expected)


def test_taps_do_not_hand_on_what_was_changed_unforeseen():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.changes = False

        def forward(self, x):
            out = self.fc(x)
            return out.relu_() if self.changes else out.relu()

    model, x = Moody(), torch.randn(4, 4)
    with TappedModel(model, ["fc"], "student") as tapped:
        tapped(x)
        model.changes = True
        with pytest.raises(RuntimeError, match="student's layer 'fc' was changed in place"):
            tapped(x)
        (features,) = tapped(x).features
        assert torch.equal(features, model.fc(x))


class Text(nn.Module):
    def forward(self, x):
        return "text"


def test_taps_on_tuples_dicts_and_repeated_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()
            self.twice = nn.Linear(4, 4)
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            return {"logits": self.twice(self.twice(self.pair(x)[0]))}

    class Pair(nn.Module):
        def forward(self, x):
            return x * 2, "text"

    x = torch.randn(4, 4)
    with TappedModel(Odd(), ["pair"]) as tapped:
        logits, features, _ = tapped(x)
    assert logits.shape == (4, 4)
    assert torch.equal(features[0], x * 2)
    with TappedModel(Odd(), ["twice"], "student") as tapped, pytest.raises(ValueError, match="more than once"):
        tapped(x)
    with (
        TappedModel(Odd(), ["unused"], "student") as tapped,
        pytest.raises(ValueError, match="'unused' was not called"),
    ):
        tapped(x)
    with pytest.raises(TypeError, match="returns a str without a tensor"), TappedModel(Text()) as tapped:
        tapped(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:Dynamo")  # torch's own, while it traces hooks
def test_a_network_that_was_compiled_and_ran_before_the_taps():
    """Its graph has no hooks. The error says what to do, and that helps."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 2)), torch.randn(4, 6)
    torch.compile(net, backend="eager")(x)
    compiled = torch.compile(net, backend="eager")
    with TappedModel(net, ["0.0"]) as tapped:
        tapped(x)
    with TappedModel(compiled, ["0.0"]) as tapped:
        try:
            outputs = tapped(x)
        except ValueError as error:
            assert "ran in a graph of torch.compile that was made before the taps" in str(error)  # noqa: PT017
            torch.compiler.reset()
            outputs = tapped(x)
    torch.testing.assert_close(outputs.features[0], net[0][0](x))
