"""The identity of the ingredients of a run: equal in every process, different whenever a result could differ."""

import functools
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from cka_probe.distill import RCKALoss
from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.training.schedules import CosineDecay, StepDecay
from cka_probe.identity import UNKNOWN, array_digest, differences, identity, weights_digest

FACTOR = 2.0


def scaled(x):
    return FACTOR * x


def nested(x):
    def inner(y):
        return y + 1

    return inner(x)


@dataclass
class Setting:
    rate: float = 0.1


class Local(nn.Module):
    power = 2

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, student, teacher, target=None):
        return self.weight * (student.logits - teacher.logits).abs().pow(self.power).mean()


def closure(weight):
    return lambda x: weight * x


PAIRS = {
    "number": (0.1, 0.2),
    "text": ("a", "b"),
    "schedule": (StepDecay((2, 3)), StepDecay((2, 4))),
    "other schedule": (StepDecay(), CosineDecay()),
    "partial": (functools.partial(torch.optim.SGD, momentum=0.9), functools.partial(torch.optim.SGD, momentum=0.8)),
    "optimizer class": (torch.optim.SGD, torch.optim.AdamW),
    "option of a loss": (RCKALoss(intra_weight=1.0), RCKALoss(intra_weight=1.5)),
    "loss": (RCKALoss(), KDLoss()),
    "code": (lambda x: x + 1, lambda x: x + 2),
    "called function": (lambda x: torch.exp(x), lambda x: torch.log(x)),
    "closure": (closure(1.0), closure(2.0)),
    "default": (lambda x, a=1: x * a, lambda x, a=2: x * a),
    "attribute": (Local(1.0), Local(2.0)),
    "dataclass": (Setting(0.1), Setting(0.2)),
    "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
    "dtype": (torch.zeros(3), torch.zeros(3).double()),
    "array": (np.zeros(3), np.array([0.0, -0.0, 0.0])),
    "dict": ({"a": 1}, {"a": 2}),
    "set": ({1, 2}, {1, 3}),
    "method": (Local(1.0).forward, Local(2.0).forward),
    "ufunc": (np.exp, np.log),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_different_things_differ_and_each_equals_itself(pair):
    first, second = pair
    assert identity(first) == identity(first)
    assert identity(first) != identity(second)
    assert not identity(first).startswith(UNKNOWN)


def test_equal_things_made_twice_are_equal():
    for make in (
        Local,
        RCKALoss,
        lambda: closure(3.0),
        lambda: {"a": torch.ones(2)},
        lambda: functools.partial(scaled),
    ):
        assert identity(make()) == identity(make())


def test_a_parameter_counts_and_the_mode_does_not():
    one, other = Local(), Local()
    other.eval()
    assert identity(one) == identity(other)
    with torch.no_grad():
        other.scale[1] = 5
    assert identity(one) != identity(other)


def test_the_values_and_functions_of_the_module_that_code_uses_count(monkeypatch):
    before = identity(scaled)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert identity(scaled) != before
    before = identity(lambda x: nested(x))
    monkeypatch.setitem(globals(), "nested", scaled)
    assert identity(lambda x: nested(x)) != before


def test_a_class_attribute_and_a_method_count(monkeypatch):
    before = identity(Local())
    with monkeypatch.context() as patch:
        patch.setattr(Local, "power", 3)
        assert identity(Local()) != before
    with monkeypatch.context() as patch:
        patch.setattr(Local, "forward", scaled)
        assert identity(Local()) != before
    assert identity(Local()) == before


def test_a_thing_that_holds_itself():
    loop = [1]
    loop.append(loop)
    assert identity(loop) == identity(loop)


@pytest.mark.parametrize("state", [threading.Lock(), (i for i in range(3)), np.random.default_rng(0)], ids=type)
def test_what_cannot_be_read_is_said(state):
    loss = Local()
    loss.state = state
    text = identity(loss)
    assert text.startswith(UNKNOWN)
    assert type(state).__name__ in text
    assert differences({"loss": text}, {"loss": text}) == [f"loss {text}, so it may have changed"]


def test_another_process_finds_the_same(tmp_path):
    code = """
    import functools, torch
    from cka_probe.identity import identity
    from cka_probe.distill import RCKALoss
    SCALE = {"b": 2, "a": 1.5}
    class Loss(torch.nn.Module):
        kinds = frozenset({"x", "y", "z"})
        def forward(self, student, teacher, target=None):
            return SCALE["a"] * student.logits.sum() if "x" in {"x", "q", "r"} else torch.relu(teacher.logits).sum()
    things = [Loss(), RCKALoss(), functools.partial(torch.optim.SGD, momentum=0.9), lambda x: SCALE, {"p", "q", "r"}]
    print([identity(thing) for thing in things])
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(code))
    found = {
        subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1
    assert UNKNOWN not in found.pop()


def test_digests():
    net = nn.Linear(3, 2)
    before = weights_digest(net)
    with torch.no_grad():
        net.bias[0] += 1e-6
    assert weights_digest(net) != before
    assert weights_digest(None) == "none"
    assert array_digest(torch.zeros(2, 3)) != array_digest(torch.zeros(3, 2))


def test_differences_name_the_entry():
    assert differences({"a": 1}, {"a": 1}) == []
    assert differences({"a": 1}, {"a": 2, "b": 3}) == [
        "a was 1 and is now 2",
        "b was not recorded by the version of cka_probe that started the run",
    ]
