"""Resumed comparisons of networks that keep something of earlier batches, and what is saved of them."""

import numpy as np
import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.progress import Resumable
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams.keeper import GramKeeper

NUMBERS = ("values", "standard_error", "p_value", "chance")


class Stopped:
    """Batches, the reading of one of which is interrupted."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __iter__(self):
        for index, batch in enumerate(self.batches):
            if index == self.at:
                raise KeyboardInterrupt
            yield batch


def layers(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.net = layers(seed)
        self.set_up()

    def set_up(self):
        pass


class Counter(Net):
    """Its output depends on how often it ran."""

    def set_up(self):
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x + 0.01 * self.calls)


class Running(Net):
    """A running mean that goes on in eval mode."""

    def set_up(self):
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean(0))
        return self.net(x * (1 + self.mean))


class Delayed(Net):
    """Adds the batch before, which it keeps in a list."""

    def set_up(self):
        self.before = []

    def forward(self, x):
        y = x + self.before[0] if self.before else x
        self.before = [x.clone()]
        return self.net(y)


class FilledOnce(Net):
    """Normalises by the statistics of the first batch that it sees."""

    def set_up(self):
        self.shift = None

    def forward(self, x):
        if self.shift is None:
            self.shift, self.scale = x.mean(0), x.std(0)
        return self.net((x - self.shift) / self.scale)


class Noisy(Net):
    def forward(self, x):
        return self.net(x + torch.randn_like(x))


class OwnGenerator(Net):
    def set_up(self):
        self.generator = torch.Generator().manual_seed(4)

    def forward(self, x):
        return self.net(x + torch.randn(x.shape, generator=self.generator))


class Positions(Net):
    """Has a layer whose output is the same in every batch, and has as many rows as the batch by chance."""

    def set_up(self):
        self.positions = nn.Embedding(20, 6)

    def forward(self, x):
        return self.net(x + self.positions(torch.arange(len(x))))


class Sometimes(Net):
    """One layer runs in some batches only."""

    def set_up(self):
        self.other = nn.Linear(6, 3)

    def forward(self, x):
        return (self.net(x), self.other(x)) if x[0, 0] > -1.2 else self.net(x)


class Words(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(30, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    def forward(self, ids, attention_mask):
        return self.layer(self.embed(ids), src_key_padding_mask=attention_mask == 0)


def vectors(count=9):
    return list(torch.randn(count, 20, 6, generator=torch.Generator().manual_seed(1)))


def words():
    generator = torch.Generator().manual_seed(2)
    found = []
    for index in range(9):
        length = 6 + index % 3
        real = torch.randint(3, length + 1, (10, 1), generator=generator)
        ids = torch.randint(0, 30, (10, length), generator=generator)
        found.append({"ids": ids, "attention_mask": (torch.arange(length)[None] < real).long()})
    return found


def small_between():
    return [batch[:3] if index in (0, 4) else batch for index, batch in enumerate(vectors())]


def growing():
    found = vectors()
    for batch in found[3:]:
        batch += 15
    return found


def same(found, expected):
    for name in NUMBERS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or a.tobytes() == b.tobytes(), name
    assert found.notes == expected.notes
    assert (found.rows, found.columns, found.meta) == (expected.rows, expected.columns, expected.meta)


def resumed(nets, data, at, path, **options):
    """The result of a run that is stopped and resumed by a process that has made its networks anew."""
    torch.manual_seed(3)
    cp.compare(*nets(), Stopped(data(), at), checkpoint=path, progress=False, **options)
    torch.manual_seed(99)  # the noise does not depend on what the second process has drawn before
    return cp.compare(*nets(), data(), checkpoint=path, progress=False, **options)


def whole(nets, data, **options):
    torch.manual_seed(3)
    return cp.compare(*nets(), data(), progress=False, **options)


KINDS = (Counter, Running, Delayed, FilledOnce, Noisy, OwnGenerator, Positions, Sometimes)


@pytest.mark.parametrize("at", [2, 6])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_a_network_keeps_of_earlier_batches_is_resumed(tmp_path, kind, at):
    def nets():
        state = torch.get_rng_state()
        found = kind(0), kind(1)
        torch.set_rng_state(state)
        return found

    expected = whole(nets, vectors)
    same(resumed(nets, vectors, at, tmp_path / "run.npz"), expected)


@pytest.mark.parametrize("kind", [Counter, Running, FilledOnce, OwnGenerator], ids=lambda kind: kind.__name__)
def test_the_same_object_is_resumed_after_ctrl_c(tmp_path, kind):
    nets = kind(0), kind(1)
    cp.compare(*nets, Stopped(vectors(), 5), checkpoint=tmp_path / "run.npz", progress=False)
    found = cp.compare(*nets, vectors(), checkpoint=tmp_path / "run.npz", progress=False)
    expected = cp.compare(kind(0), kind(1), vectors(), progress=False)
    assert found.values.tobytes() == expected.values.tobytes()
    assert found.notes == expected.notes


@pytest.mark.parametrize("at", [3, 6])
def test_masks_and_small_batches_are_resumed(tmp_path, at):
    def nets():
        return Words(0), Words(1)

    same(resumed(nets, words, at, tmp_path / "a.npz"), whole(nets, words))

    def plain():
        return layers(0), layers(1)

    same(resumed(plain, small_between, at, tmp_path / "b.npz"), whole(plain, small_between))


@pytest.mark.parametrize("every", [2, 20])
def test_the_findings_of_a_gpu_are_resumed(tmp_path, monkeypatch, every):
    monkeypatch.setattr(minibatch, "GramKeeper", lambda *args, **kw: GramKeeper(*args, **kw, deferred=True))
    monkeypatch.setattr(minibatch, "CHECKPOINT_EVERY", every)

    def nets():
        return layers(0), layers(1)

    expected = whole(nets, growing)
    assert any("in 6 of 9 batches" in note for note in expected.notes)
    same(resumed(nets, growing, 6, tmp_path / "run.npz"), expected)


class Object:
    """Something that no file can hold."""


class Growing(Net):
    def set_up(self):
        self.found = []

    def forward(self, x):
        self.found = [*self.found, Object()]
        return self.net(x * len(self.found))


def test_state_that_cannot_be_saved_is_refused_by_its_name(tmp_path):
    path = tmp_path / "run.npz"
    cp.compare(Growing(0), layers(1), Stopped(vectors(), 4), checkpoint=path, progress=False)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot be resumed\. model_x \(Growing\): its forward changes 'found'"):
        cp.compare(Growing(0), layers(1), vectors(), checkpoint=path, progress=False)
    assert path.read_bytes() == before


class Scaled(Net):
    def __init__(self, seed, scale):
        super().__init__(seed)
        self.scale = scale

    def forward(self, x):
        return self.net(self.scale * x)


def times_two(model, batch):
    return model(batch["x"] * batch["t"])


def test_another_setting_of_a_network_or_number_beside_the_tensors_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    cp.compare(Scaled(0, 1.0), layers(1), Stopped(vectors(), 5), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match=r"scale of model_x \(Scaled\) was '1\.0' and is now '2\.0'"):
        cp.compare(Scaled(0, 2.0), layers(1), vectors(), checkpoint=path, progress=False)
    swapped = layers(1)
    swapped[1] = nn.ReLU6()
    with pytest.raises(ValueError, match="code of model_y"):
        cp.compare(Scaled(0, 1.0), swapped, vectors(), checkpoint=path, progress=False)
    path.unlink()
    first, second = ([{"x": x, "t": t} for x in vectors()] for t in (1.0, 2.0))
    nets = layers(0), layers(1)
    cp.compare(*nets, Stopped(first, 5), forward=times_two, checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="made from other samples"):
        cp.compare(*nets, second, forward=times_two, checkpoint=path, progress=False)


def test_a_first_batch_with_other_values_is_refused_and_rounding_gets_a_note(tmp_path):
    """What no text identifies: here a hook; rounding as of another machine is played by a tiny factor."""
    path = tmp_path / "run.npz"
    factor = 1.0

    def nets():
        net = FilledOnce(0)  # keeps something of its first batch, so that this batch is repeated
        net.net[0].register_forward_hook(lambda _module, _inputs, output: output.clone().mul_(factor).abs_())
        net.net[0].register_forward_hook(lambda _module, _inputs, output: (factor - 1) * output.flip(0) + output)
        return net, layers(1)

    cp.compare(*nets(), Stopped(vectors(), 5), checkpoint=path, progress=False)
    factor = 1.3
    with pytest.raises(ValueError, match=r"on the first batch, .* of model_x .* gives other values than before"):
        cp.compare(*nets(), vectors(), checkpoint=path, progress=False)
    factor = 1 + 1e-6
    found = cp.compare(*nets(), vectors(), checkpoint=path, progress=False)
    [note] = [note for note in found.notes if note.startswith("resumed on another machine")]
    assert "So the last digits are not those of a run without an interruption" in note


# --- what is saved ----------------------------------------------------------------------------------------------------

SET_ANEW = {
    "Probe": None,  # all but its parts
    "LayerRecorder": {"model", "called", "name", "pooling", "keep", "forward", "probe", "sample_axis", "_reviewer",
        "_takes_half", "_reader", "_masks", "_doubtful", "_loose", "_unchanged", "_lengths", "_trial", "_kept",
        "_any_order", "_rows", "_batch", "_reduced", "_samples", "first_output", "_close", "_last", "_plain",
        "keeps_output", "output"},
    "OutputReader": {"sample_axis", "_batch_first"},
    "TokenMasks": {"two_sided", "masks"},
    "UnchangedOutputs": {"_input", "_first", "_now"},  # while it watches, the first batch is repeated
    "ChannelAxes": {"model", "paths", "_ran", "_begun"},
    "GramKeeper": {"kernel", "backend", "tf32", "overlap", "deferred", "_streams", "_side_stream", "_linear",
        "reviewed", "takes_any_order", "batch_means", "findings", "_repeats", "_finite", "_home", "_measures"},
    "Findings": {"kernel", "_differ"},
    "BatchMeans": {"_signs", "_pending"},
    "Measures": set(),
    "Repeats": {"_mean_squares"},
    "Answers": {"recorders", "asked", "many", "pairs"},
    "SideStream": {"_streams", "_lag", "_reads", "_home", "_changed"},
}  # fmt: skip
"""Attributes that are settings, parts, or set anew in each batch: they need not be saved."""


def test_every_attribute_is_saved_or_known_to_need_it_not():
    """Whoever adds an attribute to one of these classes must decide whether it decides what later batches give."""
    made = {}
    original = Resumable.state

    def state(self):
        made[type(self).__name__] = self
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resumable, "state", state)
        cp.compare(Words(0), Words(1), words(), pooling="mean", progress=False)
    assert made.keys() == SET_ANEW.keys() - {"SideStream"}
    for name, one in made.items():
        if SET_ANEW[name] is not None:
            unknown = set(vars(one)) - set(type(one).lasting) - SET_ANEW[name]
            assert not unknown, f"{name}: {unknown}"


def test_the_file_holds_no_python_objects(tmp_path):
    path = tmp_path / "run.npz"
    cp.compare(Running(0), layers(1), Stopped(vectors(), 5), checkpoint=path, progress=False)
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[name].dtype.kind in "fiuU" for name in archive.files)
