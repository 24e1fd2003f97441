"""Request holds the options of compare, fills in their defaults, and checks their values."""

import inspect
from dataclasses import fields

import pytest

import cka_probe as cp
from cka_probe.capture.keeping import ReviewingKeep
from cka_probe.comparison.feature_keeper import FeatureKeeper
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.comparison.request import Request


@pytest.mark.parametrize(
    ("function", "own"),
    [
        (cp.compare, {"model_x", "model_y", "layers", "layers_y", "exclude", "names"}),
        (cp.compare_many, {"models", "layers", "exclude"}),
        (cp.compare_features, {"x", "y", "names"}),
        (cp.signature, {"model", "name", "layers", "exclude", "form"}),
    ],
)
def test_options_of_the_public_functions_are_fields_with_the_same_defaults(function, own):
    known = {field.name: field.default for field in fields(Request)}
    parameters = inspect.signature(function).parameters.items()
    # **options, those of a measure, are one field.
    options = {name: p.default for name, p in parameters if name not in own and p.kind is not p.VAR_KEYWORD}
    assert options.items() <= {**known, "data": inspect.Parameter.empty}.items()
    if function is cp.compare:
        assert set(options) == set(known) - {"square", "options"}


def test_defaults_depend_on_the_measure():
    assert (Request([]).scope, Request([]).kernel) == ("minibatch", cp.Linear())
    assert Request([], measure="procrustes").scope == "dataset"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "epoch"}, '`scope` must be "minibatch" or "dataset"'),
        ({"estimator": "fair"}, "fair"),
        ({"measure": "procrusts"}, r"No measure is called 'procrusts'\. Did you mean 'procrustes'"),
        ({"measure": "procrustes", "kernel": cp.RBF()}, "does not use a kernel"),
        ({"measure": "procrustes", "scope": "minibatch"}, "has no minibatch form"),
        ({"scope": "dataset", "tf32": True}, '`tf32` and `overlap` are for scope="minibatch"'),
        ({"backend": "jax"}, '`backend` must be "torch" or "cupy"'),
        ({"device": "warp"}, "`device`: 'warp' cannot be used here"),
    ],
)
def test_errors_for_values(options, message):
    with pytest.raises(ValueError, match=message):
        Request([], **options)


def test_a_gram_keeper_reviews_and_copies_of_features_do_not():
    assert isinstance(GramKeeper(), ReviewingKeep)
    assert not isinstance(FeatureKeeper(None, 0), ReviewingKeep)
