"""State that a network keeps inside other objects: tuples, containers, flags, weights; and caches that are no state."""

from functools import partial

import numpy as np
import pytest
import torch
from activations import reference_cka
from torch import nn

import cka_probe as cp

compared = partial(cp.compare, progress=False)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x):
        return self.lin(x)


def batches(count=3):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(16, 6, generator=generator) * (i + 1) for i in range(count)]


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(kind(), nn.Linear(6, 4))


def state_notes(notes):
    return [note for note in notes if "its forward changes" in note]


class HiddenOfLstm(nn.Module):
    """An LSTM that goes on from the states of the batch before, kept as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.hidden: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, hidden = self.lstm(x, self.hidden)
        self.hidden = tuple(state.detach() for state in hidden)
        return y[:, -1]


def test_states_that_are_kept_in_a_tuple_are_noticed():
    torch.manual_seed(0)
    batches = [torch.randn(8, 5, 3) for _ in range(3)]
    plain = nn.Sequential(nn.Flatten(), nn.Linear(15, 4))
    (note,) = compared(HiddenOfLstm(), plain, batches).notes
    assert "the attribute 'hidden'" in note


class Echo(nn.Module):
    """Adds what the batch before has left; a repeated batch leaves the same again."""

    def __init__(self, used=True):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.used = used
        self.prev = None

    def forward(self, x):
        y = self.layer(x)
        out = y if self.prev is None or not self.used else y + self.prev
        self.prev = y.detach()
        return out


@pytest.mark.parametrize(("used", "noted"), [(True, True), (False, False)])
def test_what_the_batch_before_left_is_state_only_if_the_output_depends_on_it(used, noted):
    net = Echo(used)
    result = cp.compare(net, net, [torch.randn(6, 4) for _ in range(3)], layers=["", "layer"], progress=False)
    assert any("its forward changes the attribute 'prev'" in note for note in result.notes) == noted
    assert len(result.notes) == noted


# --- what the batch before has left, in any form ----------------------------------------------------------------------


class Holder:
    """An object with attributes, as the caches of transformers are."""

    def __init__(self):
        self.parts = [None, {"seen": 0}]


class Remembers(nn.Module):
    """Adds the mean of the batch before. Keeps it, and whether there is one, in one of several forms."""

    def __init__(self, form):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.form, self.started, self.kept, self.holder = form, False, None, Holder()
        self.array = np.zeros(3, dtype=np.float32)

    def forward(self, x):
        y = self.layer(x)
        out = y + self.read() if self.started else y
        self.started = True
        self.write(y.detach().mean(0))
        return out

    def read(self):
        if self.form == "object":
            return self.holder.parts[0]
        if self.form == "array":
            return torch.from_numpy(self.array.copy())
        return {"tensor": lambda: self.kept, "nested": lambda: self.kept[0][1]["mean"]}[self.form]()

    def write(self, mean):
        if self.form == "object":
            self.holder.parts[0] = mean
        elif self.form == "array":
            self.array[:] = mean.numpy()
        else:
            self.kept = mean if self.form == "tensor" else ((1, {"mean": mean}), "text")


def four_wide(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, generator=generator) + i for i in range(count)]


@pytest.mark.parametrize("form", ["tensor", "nested", "object", "array"])
def test_the_batch_before_is_state_whatever_keeps_it(form):
    def net():
        torch.manual_seed(0)
        return Remembers(form)

    one = net()
    result = compared(one, one, four_wide(), layers=[""])
    [note] = state_notes(result.notes)
    assert "depend on the order of the batches" in note
    fresh = net()
    oracle = [{"": fresh(batch).detach().numpy()} for batch in four_wide()]
    np.testing.assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert torch.allclose(torch.as_tensor(one.read()), torch.as_tensor(fresh.read()))  # it goes on where it was


class GrowingKeys(nn.Module):
    """Keys of all batches so far, in an object in a tuple."""

    def __init__(self, used=True):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.used, self.past = used, (Holder(),)

    def forward(self, x):
        y = self.layer(x)
        before = self.past[0].parts[0]
        self.past[0].parts[0] = y.detach() if before is None else torch.cat([before, y.detach()])
        self.past[0].parts[1]["seen"] += 1
        return y + self.past[0].parts[0].mean(0) if self.used else y


def test_what_grows_inside_an_object_is_state_only_if_the_output_depends_on_it():
    for used in (True, False):
        net = GrowingKeys(used)
        result = compared(net, net, four_wide())
        assert bool(state_notes(result.notes)) == used
        assert len(net.past[0].parts[0]) == 24  # the batches that ran, without the runs that looked for state
        assert net.past[0].parts[1]["seen"] == 4


class FilledOnce(nn.Module):
    """A mask that is made in the first forward, with a flag that says so, and an object that remembers shapes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.ready, self.mask, self.holder = False, None, Holder()

    def forward(self, x):
        if not self.ready:
            self.mask, self.ready = ((torch.ones(4), "ones"),), True
        self.holder.parts = [x.shape, {"mean": float(x.mean())}]
        self.kept = {"inputs": (x, [x * 2])}
        return self.layer(x * self.mask[0][0])


def test_a_cache_with_a_flag_and_kept_outputs_in_objects_are_no_state():
    net = FilledOnce()
    assert not state_notes(compared(net, net, four_wide()).notes)


def test_rwkv_divides_its_weights_once_and_has_no_note():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=4, attention_hidden_size=16, intermediate_size=32,
        rescale_every=2,
    )  # fmt: skip
    data = [{"input_ids": torch.randint(0, 40, (6, 5))} for _ in range(3)]
    net = transformers.RwkvModel(config).eval()
    before = net.blocks[3].attention.output.weight.clone()
    result = compared(net, net, data, pooling="mean")
    assert not torch.equal(net.blocks[3].attention.output.weight, before)  # by its own forward
    assert not state_notes(result.notes)


class DividesAgain(Base):
    """Divides its weights in every forward, and says that it has done so."""

    def __init__(self):
        super().__init__()
        self.divided = False

    def forward(self, x):
        self.lin.weight.div_(1.0)
        self.divided = True
        return torch.tanh(self.lin(x))


def test_weights_that_change_in_every_forward_are_state():
    net = network(DividesAgain)
    [note] = state_notes(compared(net, net, batches()).notes)
    assert "the weight '0.lin.weight'" in note
