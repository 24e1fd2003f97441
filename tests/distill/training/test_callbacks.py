"""The calls of callbacks."""

import pytest
import torch
from small_runs import network

from cka_probe.distill.training.callbacks import Callbacks, Moment


class Both:
    def __init__(self, answer=None):
        self.answer, self.calls = answer, []

    def on_step(self, moment):
        self.calls.append("step")
        return self.answer

    def on_epoch(self, moment):
        self.calls.append("epoch")
        moment.student.eval()
        torch.rand(3)


def moment():
    return Moment(epoch=1, step=1, steps=2, learning_rate=0.1, student=network(1))


def test_all_are_called_and_the_run_ends_if_one_returns_true():
    first, second = Both(answer=True), Both(answer="a text is no True")
    assert Callbacks([first, second]).on_step(moment())
    assert first.calls == second.calls == ["step"]
    assert not Callbacks([second]).on_step(moment())
    assert not Callbacks().on_epoch(moment())


def test_random_states_and_modes_are_as_before():
    state, here = torch.get_rng_state(), moment()
    assert not Callbacks([Both()]).on_epoch(here)
    assert torch.equal(state, torch.get_rng_state())
    assert here.student.training


def test_states_are_saved_and_given_back():
    class Counter:
        count = 0

        def on_step(self, moment):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    one = Counter()
    callbacks = Callbacks([Both(), one])
    callbacks.on_step(moment())
    again = Counter()
    Callbacks([Both(), again]).load_state_dict(callbacks.state_dict())
    assert again.count == 1


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Both(), r"`callbacks` is a list of objects, got Both. Write callbacks=\[...\]"),
        ([print], r"`callbacks`\[0\] needs a method on_step\(moment\) or on_epoch"),
        ([Both(), Both], r"`callbacks`\[1\] needs .* It is a class: make an object of it"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, message):
    with pytest.raises(TypeError, match=message):
        Callbacks(callbacks)
