"""When the errors that depend on values come: at once, one step later, or as NaN; and how often the host asks."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cka_probe.distill.baselines import DKDLoss, KDLoss
from cka_probe.distill.losses import (
    FeatureCKALoss,
    HiddenStateCKALoss,
    LogitCKALoss,
    Outputs,
    PatchCKALoss,
    RCKALoss,
    deferred,
)
from cka_probe.identity import identity


class Questions(TorchDispatchMode):
    """Counts operations for which the host needs a value of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        asking = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        self.count += function.overloadpacket in asking
        return function(*args, **(kwargs or {}))


def outputs(seed, samples=8):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 5, generator=generator, requires_grad=True)
    return Outputs(logits, tuple(torch.randn(samples, 4, 6, 6, generator=generator, requires_grad=True) for _ in "abc"))


@pytest.fixture
def far_away(monkeypatch):
    """The device of the tests counts as one that the host must wait for, such as a GPU."""
    monkeypatch.setattr(deferred, "is_host", lambda _device: False)


@pytest.mark.parametrize(
    "loss", [RCKALoss(), RCKALoss(estimator="unbiased"), PatchCKALoss(2, mimic_weight=1), DKDLoss(), KDLoss()], ids=str
)
def test_a_step_asks_the_host_at_most_once(loss):
    student, teacher = outputs(0), outputs(1)
    if loss.reads == ("features",):
        loss.prepare(student.features, teacher.features)
    with Questions() as questions:
        loss(student, teacher, torch.arange(8) % 5).backward()
    assert questions.count <= 1


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("loss", [RCKALoss(), PatchCKALoss(2), DKDLoss()], ids=str)
def test_no_step_waits_for_a_gpu(loss, monkeypatch):
    # The answers of earlier steps are read when they are there; here they never are.
    monkeypatch.setattr(deferred, "raise_pending", lambda _loss: None)
    student, teacher = outputs(0), outputs(1)
    if loss.reads == ("features",):
        loss.prepare(student.features, teacher.features)
    with Questions() as questions:
        for _ in range(3):
            loss(student, teacher, torch.arange(8) % 5).backward()
    assert questions.count == 0


@pytest.mark.usefixtures("far_away")
def test_on_a_gpu_an_undefined_loss_raises_in_the_next_call_with_its_reason():
    loss, student, teacher = RCKALoss(), outputs(0), outputs(1)
    dead = student._replace(features=(*student.features[:2], torch.ones(8, 4, 6, 6, requires_grad=True)))
    assert loss(dead, teacher).isnan()
    with pytest.raises(ValueError, match=r"The student's feature 2, shape \(8, 144\), are constant over the batch"):
        loss(student, teacher)
    assert loss(student, teacher).isfinite()  # the error is raised once
    deferred.raise_pending(loss, wait=True)

    broken = teacher._replace(logits=torch.full((8, 5), torch.inf))
    assert loss(student, broken).isnan()
    with pytest.raises(ValueError, match=r"The teacher's logits, shape \(8, 5\), hold NaN or infinity"):
        deferred.raise_pending(loss)
    wrong = torch.full((8,), 7)
    dkd = DKDLoss()
    assert dkd(student.logits, teacher.logits, wrong).isfinite()
    with pytest.raises(ValueError, match="the target holds classes from 7 to 7, but the logits have 5 classes, 0 to 4"):
        dkd(student.logits, teacher.logits, wrong % 5)


@pytest.mark.usefixtures("far_away")
def test_what_is_in_flight_belongs_neither_to_the_state_nor_to_the_identity_of_a_loss():
    loss = LogitCKALoss()
    before = identity(loss), loss.state_dict()
    assert loss(torch.ones(8, 5), torch.ones(8, 5)).isnan()
    assert (identity(loss), loss.state_dict()) == before
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin(outputs(0).logits, outputs(1).logits).isfinite()


def test_on_a_cpu_the_error_comes_with_the_step_and_names_the_first_cause():
    student, teacher = outputs(0), outputs(1)
    dead = student._replace(features=(torch.ones(8, 4, 6, 6), *student.features[1:]), logits=torch.ones(8, 5))
    for step in (RCKALoss(), RCKALoss().terms):
        with pytest.raises(ValueError, match=r"The student's feature 0, shape \(8, 144\), are constant"):
            step(dead, teacher)
    loss = FeatureCKALoss()
    with pytest.raises(ValueError, match="at least two axes"):  # a fact of the host is refused within the step
        loss((torch.ones(8),), (torch.ones(8),))
    assert loss(student.features, teacher.features).isfinite()
    with pytest.raises(TypeError, match="looks like an attention mask"):
        HiddenStateCKALoss()([torch.randn(4, 6, 3)], [torch.randn(4, 6, 3)], torch.ones(4, 6))


def test_a_loss_without_values_is_computed_without_a_question():
    with torch.device("meta"):
        logits, maps = torch.empty(8, 5), torch.empty(8, 4, 6, 6)
        assert RCKALoss()(Outputs(logits, (maps,)), Outputs(logits, (maps,))).shape == ()
