"""Networks of one comparison that share weights, or are one object, get a note; others do not."""

import copy

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.comparison.history import SimilarityHistory

DATA = [torch.randn(16, 6, generator=torch.Generator().manual_seed(0))]


def network():
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def sharing(result):
    return [note for note in result.notes if "share" in note or "one and the same" in note or "is a part" in note]


def test_an_adapter_that_changes_the_network_it_is_given():
    peft = pytest.importorskip("peft")
    base = network()
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    [note] = sharing(cp.compare(base, adapted, DATA, layers="leaves", progress=False))
    assert "share 6 of their 6 and 6 parameters" in note
    assert "model_x is a part of model_y" in note
    assert "is one a wrapper of the other?" in note
    [note] = sharing(cp.compare_many({"base": base, "tuned": adapted}, DATA, progress=False))
    assert note.startswith("base and tuned share 6 of")


def test_a_copy_before_the_adapter_has_no_note_and_other_values():
    peft = pytest.importorskip("peft")
    base = network()
    adapted = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    )
    result = cp.compare(base, adapted, DATA, progress=False)
    assert not sharing(result)
    assert result.values[-1, -1] < 0.999


def test_tied_parameters_are_counted():
    x, y = network(), network()
    y[0].weight = x[0].weight
    [note] = sharing(cp.compare(x, y, DATA, progress=False))
    assert note.startswith("model_x and model_y share 1 of their 4 and 4 parameters, such as '0.weight' of model_x")


def test_parameters_that_share_memory_are_counted():
    """load_state_dict(assign=True) makes the weights of one network those of the other."""
    x, y = network(), network()
    y.load_state_dict(x.state_dict(), assign=True)
    assert "share 4 of their 4 and 4 parameters" in sharing(cp.compare(x, y, DATA, progress=False))[0]


def test_a_part_without_parameters_that_is_in_both():
    inner = nn.Sequential(nn.Tanh(), nn.Flatten())
    [note] = sharing(cp.compare(inner, nn.Sequential(inner, nn.Linear(6, 6)), DATA, progress=False))
    assert note.startswith("model_x is a part of model_y")


def test_one_object_under_two_names():
    net = network()
    [note] = sharing(cp.compare_many({"first": net, "last": nn.DataParallel(net)}, DATA, progress=False))
    assert note.startswith("first and last are one and the same network")


def test_no_note_for_a_network_with_itself_for_copies_and_for_a_shared_activation():
    net, act = network(), nn.ReLU()
    assert not sharing(cp.compare(net, net, DATA, progress=False))
    assert not sharing(cp.compare(net, net, DATA, layers=["0"], layers_y=["2"], progress=False))
    assert not sharing(cp.compare(net, copy.deepcopy(net), DATA, progress=False))
    x, y = (nn.Sequential(nn.Linear(6, 6), act) for _ in range(2))
    assert not sharing(cp.compare(x, y, DATA, progress=False))


def test_a_history_whose_reference_is_the_model_itself_says_so():
    net = network()
    history = SimilarityHistory(net, DATA)
    assert "one and the same network" in sharing(history.measure(net, step=0))[0]
    assert not sharing(SimilarityHistory(copy.deepcopy(net), DATA).measure(net, step=0))
