"""Which part of `layers` and `exclude` is meant for which model, if a comparison has several."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.comparison.layer_choice import layers_by_model


def network(*names, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential()
    for name in names:
        net.add_module(name, nn.Linear(6, 6))
        net.add_module(f"{name}_act", nn.Tanh())
    return net


@pytest.fixture(scope="module")
def nets():
    return {"a": network("stem", "head"), "b": network("stem", "tail", seed=1)}


def data():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def many(nets, **options):
    result = cp.compare_many(nets, data(), progress=False, **options)
    return list(zip(result.row_models, result.rows, strict=True)), result


def test_a_mapping_with_the_names_of_the_models_gives_the_layers_of_each(nets):
    rows, _ = many(nets, layers={"a": ["stem", "head"], "b": {"tail": "head"}})
    assert rows == [("a", "stem"), ("a", "head"), ("b", "head")]


def test_a_mapping_without_names_of_models_renames_the_layers_of_all(nets):
    rows, _ = many(nets, layers={"stem": "first"})
    assert rows == [("a", "first"), ("b", "first")]


def test_a_mapping_that_mixes_both_is_an_error(nets):
    with pytest.raises(ValueError, match=r"`layers` mixes names of models with 'stem', which is none\. The models are"):
        many(nets, layers={"a": "stem", "b": "stem", "stem": "first"})
    with pytest.raises(ValueError, match=r"`layers` mixes names of models with 'bb', which is none\. Did you mean 'b'"):
        many(nets, layers={"a": "stem", "bb": "stem"})
    with pytest.raises(ValueError, match=r"`layers` has no entry for 'b'"):
        many(nets, layers={"a": "stem"})


def test_a_model_with_the_name_of_a_layer_is_a_model():
    nets = {"stem": network("stem"), "tail": network("stem", "tail")}
    rows, _ = many(nets, layers={"stem": "stem", "tail": "tail"})
    assert rows == [("stem", "stem"), ("tail", "tail")]


def test_the_rows_of_a_result_with_several_models_select_them_again(nets):
    rows, whole = many(nets, layers=nn.Linear)
    assert rows == [("a", "stem"), ("a", "head"), ("b", "stem"), ("b", "tail")]
    for layers in (whole.rows, rows, whole.to_frame().index, zip(whole.row_models, whole.rows, strict=True)):
        again, result = many(nets, layers=layers)
        assert again == rows
        assert_allclose(result.values, whole.values, atol=1e-12)


def test_a_layer_of_no_model_is_an_error(nets):
    with pytest.raises(ValueError, match=r"Sequential has no layer 'hed'\. Did you mean 'head'"):
        many(nets, layers=["stem", "hed"])
    with pytest.raises(ValueError, match=r"No layer in `layers` exists in b"):
        many(nets, layers=["head"])
    with pytest.raises(ValueError, match=r"`layers`: no model is called 'c'"):
        many(nets, layers=[("a", "stem"), ("c", "stem")])
    with pytest.raises(ValueError, match=r"`layers` has no entry for 'b'"):
        many(nets, layers=[("a", "stem")])


def test_a_pattern_must_match_in_every_model(nets):
    with pytest.raises(ValueError, match=r"The pattern 'hea\*' matches no layer of Sequential"):
        many(nets, layers=["stem", "hea*"])


def test_layers_that_are_empty_are_an_error(nets):
    with pytest.raises(ValueError, match="`layers` is empty"):
        many(nets, layers=[])


def test_exclude_must_remove_a_layer_of_one_model(nets):
    rows, _ = many(nets, layers=nn.Linear, exclude="tail")
    assert rows == [("a", "stem"), ("a", "head"), ("b", "stem")]
    result = cp.compare(*nets.values(), data(), exclude=["head", "tail*"], progress=False)
    assert (result.rows, result.columns) == (("stem", "stem_act", "head_act"), ("stem", "stem_act"))
    with pytest.raises(ValueError, match=r"Sequential has no layer 'tall'\. Did you mean"):
        many(nets, exclude=["stem", "tall"])
    with pytest.raises(ValueError, match=r"`exclude` removes every layer"):
        cp.compare(*nets.values(), data(), layers=["stem"], exclude="stem", progress=False)


def test_one_model_with_equal_selections_runs_once(nets):
    calls = []
    net = network("stem", "head")
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    cp.compare(net, net, data(), layers=["stem", "head"], layers_y=("stem", "head"), progress=False)
    once = len(calls)
    calls.clear()
    cp.compare(net, net, data(), layers=["stem", "head"], layers_y=["head"], progress=False)
    assert len(calls) > once


def test_layers_by_model_gives_every_model_a_list_of_its_own(nets):
    chosen = layers_by_model(nets, "leaves")
    assert chosen == {"a": ["leaves"], "b": ["leaves"]}
    assert chosen["a"] is not chosen["b"]
