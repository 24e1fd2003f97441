"""Globs, calls, new names, the rows of a result, `exclude`, and the hint that a misspelt name gets."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.hooks import Probe
from cka_probe.capture.layers import select_layers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.norm(self.relu(self.conv(x))))


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer1, self.layer2 = nn.Sequential(Block(), Block()), nn.Sequential(Block())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.conv1(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    return Net()


def paths(model, layers="leaves", exclude=None):
    return list(select_layers(model, layers, exclude).paths)


def data(n=10):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))


# --- globs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "picked"),
    [
        ("layer*", ["layer1", "layer2"]),
        ("layer*.*", ["layer1.0", "layer1.1", "layer2.0"]),
        ("*.conv", None),
        ("*.*.conv", ["layer1.0.conv", "layer1.1.conv", "layer2.0.conv"]),
        ("**.conv", ["layer1.0.conv", "layer1.1.conv", "layer2.0.conv"]),
        ("**conv", ["layer1.0.conv", "layer1.1.conv", "layer2.0.conv"]),
        ("**conv*", ["conv1", "layer1.0.conv", "layer1.1.conv", "layer2.0.conv"]),
        ("**.fc", ["fc"]),
        ("layer2.**", ["layer2.0", "layer2.0.conv", "layer2.0.norm", "layer2.0.relu"]),
        ("layer2**", ["layer2", "layer2.0", "layer2.0.conv", "layer2.0.norm", "layer2.0.relu"]),
        ("layer1.**.conv", ["layer1.0.conv", "layer1.1.conv"]),
        ("layer1.0.**.conv", ["layer1.0.conv"]),
        ("layer?.0.?onv", ["layer1.0.conv", "layer2.0.conv"]),
        ("layer1?0", None),
        ("layer[12].0", ["layer1.0", "layer2.0"]),
        ("layer[!1].0", ["layer2.0"]),
        ("layer1[!x]0", None),
        ("layer[0-1].[1]", ["layer1.1"]),
        ("conv1*", ["conv1"]),
        ("*", ["conv1", "layer1", "layer2", "fc"]),
    ],
)
def test_one_star_stays_between_two_dots_and_two_cross_them(net, glob, picked):
    if picked is None:
        with pytest.raises(ValueError, match="matches no layer of Net"):
            paths(net, glob)
    else:
        assert paths(net, glob) == picked


def test_two_stars_alone_are_every_module(net):
    assert paths(net, "**") == [name for name, _ in net.named_modules() if name]


def test_a_star_that_would_have_to_cross_a_dot_gets_a_hint(net):
    with pytest.raises(ValueError, match=r"`\*` stays between two dots and `\*\*` crosses them: write '\*\*\.conv'"):
        paths(net, "*.conv")


def test_a_bracket_that_is_never_closed_stands_for_itself(net):
    with pytest.raises(ValueError, match=r"The pattern 'layer\[1' matches no layer of Net\. Did you mean 'layer1'"):
        paths(net, "layer[1")


# --- names that are nearly right ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Layer1", "layer1"),
        ("layer1[0].conv", "layer1.0.conv"),
        ("layer1/0/conv", "layer1.0.conv"),
        ("module.layer1.0", "layer1.0"),
        ("model.layer1.0.conv", "layer1.0.conv"),
        (" conv1 ", "conv1"),
        (".conv1", "conv1"),
        ("conv1#x", "conv1"),
        ("cnv1#2", "conv1"),
        ("leafs", "leaves"),
        ("block", "blocks"),
        ("leave", "leaves"),
    ],
)
def test_the_hint_for_a_name_that_is_nearly_right(net, name, meant):
    with pytest.raises(ValueError, match=rf"Did you mean '{meant}'"):
        paths(net, [name])


def test_the_network_itself_is_called_model_unless_a_part_of_it_is(net):
    assert paths(net, "model") == paths(net, "") == [""]
    holder = nn.Module()
    holder.model = nn.Linear(2, 2)
    assert paths(holder, "model") == ["model"]
    assert paths(holder, "(model)") == [""]


# --- calls, and what other results call their layers --------------------------------------------------------------


def test_the_rows_of_a_result_select_the_same_rows(net):
    whole = cp.compare(net, net, data(), layers=["leaves", "blocks", ""], progress=False)
    assert {"layer1.0.relu#2", "model"} <= set(whole.rows)
    for rows in (whole.rows, list(whole.rows), np.array(whole.rows), pd.Index(whole.rows), whole.to_frame().index):
        again = cp.compare(net, net, data(), layers=rows, progress=False)
        assert again.rows == whole.rows
        np.testing.assert_allclose(again.values, whole.values, atol=1e-12)
    features = cp.extract(net, data(), layers=["conv1", "fc"], progress=False)
    assert cp.compare(net, net, data(), layers=features.keys(), progress=False).rows == ("conv1", "fc")


def test_an_iterator_selects_for_both_networks(net):
    result = cp.compare(net, Net(1), data(), layers=(name for name in ("conv1", "fc")), progress=False)
    assert result.rows == result.columns == ("conv1", "fc")


def test_one_call_of_a_layer_alone(net):
    whole = cp.compare(net, net, data(), progress=False)
    second = cp.compare(net, net, data(), layers=["layer1.0.relu#2", "fc"], progress=False)
    assert second.rows == ("layer1.0.relu#2", "fc")
    chosen = [whole.rows.index(name) for name in second.rows]
    np.testing.assert_allclose(second.values, whole.values[np.ix_(chosen, chosen)], atol=1e-12)
    first = cp.extract(net, data(), layers="layer1.0.relu#1", progress=False)
    assert list(first) == ["layer1.0.relu"]


def test_a_call_that_does_not_happen_is_an_error(net):
    with pytest.raises(cp.CaptureError, match=r"Layer 'layer1\.0\.relu#3' of model .*did not run"):
        cp.extract(net, data(), layers=["layer1.0.relu#3", "layer1.0.relu#2"], progress=False)


def test_all_calls_are_selected_if_the_layer_is_as_well(net):
    names = list(cp.extract(net, data(), layers=["layer1.0.relu#2", "layer1.0.relu"], progress=False))
    assert names == ["layer1.0.relu", "layer1.0.relu#2"]


# --- new names ----------------------------------------------------------------------------------------------------


def test_a_mapping_renames_layers(net):
    names = {"conv1": "stem", "layer1.0.relu": "relu", "**.fc": "head", "": "whole"}
    result = cp.compare(net, net, data(), layers=names, progress=False)
    assert result.rows == ("stem", "relu", "relu#2", "head", "whole")
    plain = cp.compare(net, net, data(), layers=list(names), progress=False)
    np.testing.assert_allclose(result.values, plain.values, atol=1e-12)
    assert list(cp.extract(net, data(), layers=names, progress=False)) == list(result.rows)
    assert list(cp.signature(net, data(), layers=names, progress=False).layers) == list(result.rows)
    with Probe(net, names) as probe:
        net(data())
    assert list(probe.features) == list(result.rows)


def test_a_mapping_may_stand_beside_other_parts(net):
    result = cp.compare(net, net, data(), layers=[{"conv1": "stem"}, "layer2.*", {"fc": "head"}], progress=False)
    assert result.rows == ("stem", "layer2.0", "head")


def test_a_renamed_layer_that_does_not_run_is_named_in_the_error(net):
    net = Net()
    net.unused = nn.Linear(2, 2)
    with pytest.raises(cp.CaptureError, match=r"Layer 'spare' of .* was selected by name but did not run"):
        cp.compare(net, net, data(), layers={"unused": "spare"}, progress=False)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"layer1.*": "x"}, r"'layer1\.\*' selects 2 layers \('layer1\.0', 'layer1\.1'\), but only exactly one"),
        ({"leaves": "x"}, r"'leaves' selects 11 layers \('conv1', .*\.\.\.\), but only exactly one layer can be"),
        ({"conv1#2": "x"}, r"'conv1#2' selects one call of a layer, but only exactly one layer can be called 'x'"),
        ({"conv1": 3}, r"3 cannot be the name of layer 'conv1'\. A mapping \{layer: name\} renames layers"),
        ({"conv1": ""}, r"'' cannot be the name of layer 'conv1'"),
        ({"conv1": "a#2"}, r"'a#2' cannot be the name of layer 'conv1'\. .* does not end in # and a number"),
        ({"conv1": ["fc"]}, r"\['fc'\] cannot be the name of layer 'conv1'"),
        ({"conv1": "x", "fc": "x"}, r"`layers` gives 'conv1' and 'fc' the same name, 'x'"),
        ([{"conv1": "fc"}, "fc"], r"`layers` gives 'conv1' and 'fc' the same name, 'fc'"),
        ([{"conv1": "a"}, {"conv*": "b"}], r"`layers` gives layer 'conv1' two names: 'a' and 'b'"),
        ({"cnv1": "x"}, r"Net has no layer 'cnv1'\. Did you mean 'conv1'"),
        ({}, r"`layers` is empty"),
    ],
)
def test_errors_of_a_mapping(net, layers, message):
    with pytest.raises(ValueError, match=message):
        select_layers(net, layers)


def test_two_paths_of_one_module_cannot_have_two_names():
    net = nn.Module()
    net.a = net.b = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"gives layer 'b' \(it is the same module as 'a'\) two names: 'x' and 'y'"):
        select_layers(net, {"a": "x", "b": "y"})


# --- exclude ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "exclude", "left"),
    [
        (
            "leaves",
            nn.ReLU,
            ["conv1", *(f"layer{b}.{p}" for b in ("1.0", "1.1", "2.0") for p in ("conv", "norm")), "fc"],
        ),
        ("leaves", ["layer1.**", "layer2**", "fc"], ["conv1"]),
        ("*", ["fc", "conv1"], ["layer1", "layer2"]),
        ("**.conv", "layer1.0.conv", ["layer1.1.conv", "layer2.0.conv"]),
        ("leaves", lambda name, _module: name != "fc", ["fc"]),
        (["model", "fc"], "model", ["fc"]),
        ("blocks", r"re:layer1\..", ["layer2.0"]),
    ],
    ids=["class", "globs", "paths", "path", "predicate", "root", "regex"],
)
def test_exclude_leaves_layers_out(net, layers, exclude, left):
    assert paths(net, layers, exclude) == left


def test_exclude_takes_one_call_of_a_layer(net):
    features = cp.extract(net, data(), "layer1.0.*", exclude="layer1.0.relu#1", progress=False)
    assert list(features) == ["layer1.0.conv", "layer1.0.norm", "layer1.0.relu#2"]
    features = cp.extract(net, data(), ["fc", "layer1.0.relu#2"], exclude="layer1.0.relu#2", progress=False)
    assert list(features) == ["fc"]


def test_a_shared_module_is_excluded_by_any_of_its_paths():
    net = nn.Module()
    net.a = net.b = nn.Linear(2, 2)
    net.c = nn.ReLU()
    assert paths(net, "leaves", "b") == ["c"]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ("fcc", r"Net has no layer 'fcc'\. Did you mean 'fc'"),
        ("head.*", r"The pattern 'head\.\*' matches no layer of Net"),
        (nn.LSTM, r"Net has no layer of type LSTM"),
        ("layer1", r"`exclude`: 'layer1' removes none of the layers of Net .*write 'layer1\.\*\*'"),
        (Block, r"`exclude`: Block removes none of the layers of Net that `layers` selects"),
        ("**", r"`exclude` removes every layer that `layers` selects"),
    ],
)
def test_an_exclude_that_removes_nothing_or_everything_is_an_error(net, exclude, message):
    with pytest.raises(ValueError, match=message):
        select_layers(net, "leaves", exclude)


def test_errors_for_an_exclude_of_the_wrong_type(net):
    with pytest.raises(TypeError, match=r"`exclude` holds a Linear module\. Name it by its path: 'fc'"):
        select_layers(net, "leaves", net.fc)
    with pytest.raises(TypeError, match=r"`exclude` may hold names, patterns, types and functions, not int"):
        select_layers(net, "leaves", [3])


def test_every_function_takes_exclude(net):
    rows = ("conv1", "fc")
    options = {"layers": "*", "exclude": "layer*", "progress": False}
    assert cp.compare(net, Net(1), data(), **options).rows == rows
    assert cp.compare_many({"a": net, "b": Net(1)}, data(), **options).rows == rows * 2
    assert tuple(cp.extract(net, data(), **options)) == rows
    assert cp.signature(net, data(), **options).layers == rows
    with Probe(net, "*", exclude="layer*") as probe:
        net(data())
    assert tuple(probe.features) == rows
