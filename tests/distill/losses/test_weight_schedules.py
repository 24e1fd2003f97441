"""Weights that follow the progress of a run: values against the formula, every weight of every loss, and bad input."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

from cka_probe.distill import RCKALoss, baselines, losses, ramp, set_progress
from cka_probe.distill.baselines import DKDLoss, KDLoss
from cka_probe.distill.losses import LogitCKALoss, Outputs
from cka_probe.identity import identity


def outputs(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(
        torch.randn(8, 5, generator=generator, dtype=dtype),
        (torch.randn(8, 3, 4, 4, generator=generator, dtype=dtype),),
    )


def test_a_ramp_rises_to_its_weight_and_stays():
    linear, cosine = ramp(15, until=0.5), ramp(3, until=0.8, start=1, shape="cosine")
    for progress in np.linspace(0, 1, 41):
        assert linear(progress) == pytest.approx(15 * min(progress / 0.5, 1))
        share = min(progress / 0.8, 1)
        assert cosine(progress) == pytest.approx(1 + 2 * (1 - math.cos(math.pi * share)) / 2)
    assert (linear(0), linear(0.5), linear(1), cosine(0), cosine(1)) == (0, 15, 15, 1, 3)
    assert repr(linear) == "ramp(15, until=0.5, shape='linear')"
    assert eval(repr(cosine)) == cosine
    assert ramp(0, start=2)(0.25) == 1.5


WEIGHTS = [
    (getattr(room, name), parameter)
    for room in (losses, baselines)
    for name in room.__all__
    if name.endswith("Loss") and name != "DistillationLoss"
    for parameter in inspect.signature(getattr(room, name)).parameters
    if parameter.endswith("weight") or (name in ("DKDLoss", "DISTLoss") and parameter in ("alpha", "beta", "gamma"))
]


@pytest.mark.parametrize(("loss", "weight"), WEIGHTS, ids=[f"{loss.__name__}-{weight}" for loss, weight in WEIGHTS])
def test_every_weight_of_every_loss_may_be_a_schedule(loss, weight):
    student, teacher = outputs(0), outputs(1)
    if loss.__name__ == "SegmentationCKALoss":
        student, teacher = (Outputs(x.features[0]) for x in (student, teacher))
    if loss.__name__ == "HiddenStateCKALoss":
        student, teacher = (Outputs(features=(x.features[0].flatten(2),)) for x in (student, teacher))
    target = torch.arange(8) % 5 if loss is DKDLoss else None
    options = {"patch": 2} if loss.__name__ == "PatchCKALoss" else {}
    scheduled, constant = loss(**options, **{weight: lambda progress: 2 * progress}), loss(**options, **{weight: 1.0})
    for one in (scheduled, constant):
        if hasattr(one, "prepare"):
            torch.manual_seed(0)
            one.prepare(student.features, teacher.features)
    names = list(constant.terms(student, teacher, target))
    zero = scheduled.terms(student, teacher, target)
    assert list(zero) == names  # a history has the same columns from its first row on
    scheduled.progress = 0.5
    torch.testing.assert_close(scheduled.terms(student, teacher, target), constant.terms(student, teacher, target))
    assert sum(zero[name] == 0 and constant.terms(student, teacher, target)[name] != 0 for name in names) == 1
    assert "lambda" in repr(scheduled)


def test_terms_keep_their_dtype_and_the_progress_reaches_every_part():
    loss = RCKALoss(ramp(2), ramp(15, until=0.5), 15)
    for dtype in (torch.float32, torch.float64):
        loss.progress = 0.25
        terms = loss.terms(outputs(0, dtype), outputs(1, dtype))
        plain = RCKALoss(0.5, 7.5, 15).terms(outputs(0, dtype), outputs(1, dtype))
        assert {term.dtype for term in terms.values()} == {dtype}
        assert terms == {name: pytest.approx(float(term), rel=1e-6) for name, term in plain.items()}
    assert (loss.progress, loss.features.progress, loss.logits.progress) == (0.25, 0.25, 0.25)
    later = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))
    assert [float(one(outputs(0), outputs(1))) for one in later] == [float(loss(outputs(0), outputs(1)))] * 2


def test_set_progress_reaches_what_can_be_told_and_leaves_the_rest():
    class Owner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = LogitCKALoss(ramp(4))

    owner = Owner()
    set_progress(owner, 0.5)
    assert owner.inside.progress == 0.5
    assert not hasattr(owner, "progress")
    set_progress(None, 0.5)
    set_progress(math.sqrt, 0.5)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="`progress` is a fraction of the run, from 0 to 1, got"):
            owner.inside.progress = wrong


def test_a_weight_may_become_a_schedule_later_or_a_number():
    loss = KDLoss()
    loss.weight = ramp(2)
    loss.progress = 0.25
    student, teacher = outputs(0).logits, outputs(1).logits
    assert float(loss(student, teacher)) == pytest.approx(float(KDLoss(weight=0.5)(student, teacher)))
    loss = KDLoss(weight=ramp(2))
    loss.weight = 1.0
    loss.progress = 1
    assert torch.equal(loss(student, teacher), KDLoss(weight=1.0)(student, teacher))


def test_a_compiled_loss_with_a_ramp_is_compiled_once():
    torch.compiler.reset()
    loss = RCKALoss(intra_weight=ramp(15, until=0.5))
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for progress in (0.0, 0.1, 0.2, 1.0):
        set_progress(compiled, progress)
        expected = RCKALoss(intra_weight=ramp(15, until=0.5)(progress) or ramp(0))(outputs(0), outputs(1))
        torch.testing.assert_close(compiled(outputs(0), outputs(1)), expected)
    assert len(graphs) == 1


def test_the_identity_of_a_run_holds_the_schedule_and_not_the_progress():
    loss = RCKALoss(intra_weight=ramp(15, until=0.5))
    before = identity(loss)
    loss.progress = 0.7
    assert identity(loss) == before
    assert identity(RCKALoss(intra_weight=ramp(15, until=0.5))) == before
    for other in (ramp(15, until=0.4), ramp(14, until=0.5), ramp(15, until=0.5, shape="cosine"), 15, lambda p: 15 * p):
        assert identity(RCKALoss(intra_weight=other)) != before
    assert identity(KDLoss(weight=lambda p: p)) != identity(KDLoss(weight=lambda p: p / 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ramp("15"), TypeError, "`to` of a ramp must be a number, got '15'"),
        (lambda: ramp(-1), ValueError, "`to` of a ramp must not be negative, and finite, got -1"),
        (lambda: ramp(1, start=math.inf), ValueError, "`start` of a ramp must not be negative, and finite"),
        (lambda: ramp(1, until=20), ValueError, "above 0 and at most 1, got 20. 20 of 240 epochs are until=20 / 240"),
        (lambda: ramp(1, until=0), ValueError, "`until` of a ramp is a fraction of the run"),
        (lambda: ramp(1, shape="square"), ValueError, '`shape` of a ramp must be "linear" or "cosine", got \'square\''),
        (lambda: RCKALoss(intra_weight="15"), TypeError, "`intra_weight` must be a number, or a function of the pro"),
        (lambda: RCKALoss("1"), TypeError, "`feature_weight` must be a number, or a function of the progress"),
        (lambda: KDLoss(weight=-1), ValueError, "`weight` must not be negative, got -1"),
        (lambda: KDLoss(weight=math.nan), ValueError, "`weight` must not be negative, got nan"),
        (lambda: KDLoss(weight="{}".format), TypeError, "`weight`: .*must return a number .* returned '0.0' for 0"),
        (lambda: DKDLoss(beta=lambda p: p - 1), ValueError, "`beta`: .* finite and not negative, but returned -1.0 fo"),
        (lambda: KDLoss(weight=float), TypeError, "`weight` must be a number, or a function"),
    ],
)
def test_bad_weights_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
    loss = LogitCKALoss(lambda p: 1 - 2 * p)
    with pytest.raises(ValueError, match=r"`intra_weight`: .* returned -0.5 for 0.75"):
        loss.progress = 0.75
