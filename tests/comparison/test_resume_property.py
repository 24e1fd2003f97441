"""Change one ingredient of a stopped comparison at random and resume: refused by its name, and its file stays."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cka_probe as cp

SCALE = 1.0
PLACES = st.integers(0, 10**6)
FACTORS = st.floats(0.1, 3).filter(lambda factor: abs(factor - 1) > 1e-2)


class Small(nn.Module):
    """Settings of all kinds: of torch's layers, numbers, containers, a tensor that is no buffer, a buffer."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.LeakyReLU(0.1)
        self.head = nn.Linear(4, 3)
        self.scale = 1.0
        self.mode = "mean"
        self.shifts = [0.0, 1.0]
        self.options = {"power": 1}
        self.prompt = torch.ones(4)
        self.register_buffer("offset", torch.zeros(4))

    def forward(self, x):
        x = self.act(self.norm(self.conv(x * self.scale + self.shifts[0])))
        x = x.mean(-1) if self.mode == "mean" else x.amax(-1)
        return self.head(x ** self.options["power"] * self.prompt + self.offset)


def batches():
    return list(torch.randn(8, 10, 2, 6, generator=torch.Generator().manual_seed(1)))


class Stopped:
    def __init__(self, found, at):
        self.found, self.at = found, at

    def __iter__(self):
        yield from self.found[: self.at]
        raise KeyboardInterrupt


def moved(net, place):
    with torch.no_grad():
        tensors = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
        flat = tensors[place % len(tensors)].view(-1)
        flat[place % len(flat)] += 1e-3
    return net


def with_attribute(net, name, value):
    setattr(net, name, value)
    return net


def with_layer(net, name, layer):
    net.set_submodule(name, layer)
    return net


def hooked(net, name, factor):
    net.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: factor * output)
    return net


def pixel(place):
    found = batches()
    flat = found[place % 4].view(-1)  # of a batch that was used before the stop
    flat[place % len(flat)] += 1e-3
    return found


def swapped(place):
    found = batches()
    rows = found[place % 4]
    first = place % (len(rows) - 1)
    rows[[first, first + 1]] = rows[[first + 1, first]]
    return found


def other_batches(size):
    return list(torch.cat(batches()).split(size))


def scaled_forward(factor):
    return lambda model, batch: model(factor * batch)


def with_global(value):
    names = {"SCALE": value, "__name__": "__main__"}
    exec("def forward(model, batch):\n    return model(SCALE * batch)", names)  # a function of another module
    return names["forward"]


def with_default(factor):
    def forward(model, batch, factor=factor):
        return model(factor * batch)

    return forward


BASE = {"model_x": lambda: Small(0), "model_y": lambda: Small(1), "data": batches}


def change(key, name, *arguments):
    """A strategy of (argument, its value, name in the message)."""
    return st.builds(lambda value: (key, value, name), *arguments)


def of(make, strategy=PLACES):
    return st.builds(lambda drawn: lambda: make(drawn), strategy)


def network_changes(key):
    def fresh():
        return BASE[key]()

    yield change(key, f"weights of {key}", of(lambda place: moved(fresh(), place)))
    yield change(key, f"weights of {key}", st.just(lambda: fresh().double()))
    for name, values in {
        "scale": FACTORS,
        "mode": st.just("max"),
        "shifts": st.lists(st.floats(0.1, 1), min_size=1, max_size=3),
        "options": st.integers(2, 4).map(lambda n: {"power": n}),
        "prompt": st.floats(1.1, 2).map(lambda value: torch.full((4,), value)),
    }.items():
        yield change(key, f"{name} of {key}", of(lambda v, name=name: with_attribute(fresh(), name, v), values))
    for name, layers in {
        "act": st.floats(0.2, 0.9).map(nn.LeakyReLU) | st.sampled_from([nn.ReLU(), nn.Tanh()]),
        "norm": st.floats(1e-3, 1e-1).map(lambda eps: nn.BatchNorm1d(4, eps=eps)),
    }.items():
        yield change(key, f"code of {key}", of(lambda layer, name=name: with_layer(fresh(), name, layer), layers))
    for name in ("conv", "act", "head"):
        text = f"on the first batch, .* of {key} .* gives other values"
        yield change(key, text, of(lambda factor, name=name: hooked(fresh(), name, factor), FACTORS))


CHANGES = st.one_of(
    *network_changes("model_x"),
    *network_changes("model_y"),
    change("data", "was made from other samples, or in another order", of(pixel)),
    change("data", "was made from other samples, or in another order", of(swapped)),
    change(
        "data", r"batches in `data` was|other samples", of(other_batches, st.integers(4, 19).filter(lambda n: n != 10))
    ),
    change("data", "batches in `data` was '?8'? and is now", of(lambda n: batches()[:n], st.integers(1, 7))),
    change("kernel", "kernel and estimator", of(lambda f: cp.RBF(fraction=f), FACTORS)),
    change("kernel", "kernel and estimator", st.sampled_from([cp.Cosine, cp.Laplacian, cp.Polynomial])),
    change("estimator", "kernel and estimator", st.just(lambda: "biased")),
    change("pooling", "pooling", of(lambda name: name, st.sampled_from(["mean", "flatten", "last"]))),
    change("pooling", "pooling", of(lambda f: lambda x: f * x.flatten(1), FACTORS)),
    change("layers", "layers of", of(lambda name: [name], st.sampled_from(["conv", "norm", "act", "head"]))),
    change("layers_y", "layers of model_y", of(lambda name: [name], st.sampled_from(["conv", "norm", "act", "head"]))),
    change("exclude", "layers of", of(lambda name: [name], st.sampled_from(["conv", "norm", "act", "head"]))),
    change("forward", "forward", of(scaled_forward, FACTORS)),
    change("forward", "forward", of(with_global, FACTORS)),
    change("forward", "forward", of(with_default, FACTORS)),
    change("autocast", "autocast", st.just(lambda: torch.bfloat16)),
    change("data_y", "data_y", st.just(batches)),
)


def go(path, stop=None, **changes):
    options = {name: make() for name, make in {**BASE, **changes}.items()}
    nets, data = [options.pop(name) for name in ("model_x", "model_y")], options.pop("data")
    data = data if stop is None else Stopped(data, stop)
    return cp.compare(*nets, data, checkpoint=path, progress=False, **options)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    path = tmp_path_factory.mktemp("started") / "run.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopped, "__len__", lambda self: len(self.found), raising=False)
        go(path, stop=5)
    shutil.copy(path, path.with_suffix(".kept"))
    return path


@settings(max_examples=200)
@given(changed=CHANGES)
def test_a_comparison_with_one_other_ingredient_is_refused_by_its_name(started, changed):
    key, make, name = changed
    before = shutil.copy(started.with_suffix(".kept"), started).read_bytes()
    with pytest.raises(ValueError, match=name) as raised:
        go(started, **{key: make})
    assert str(started) in str(raised.value)
    assert started.read_bytes() == before


def test_without_a_change_it_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "run.ckpt"
    go(path, stop=5)
    found, whole = go(path), go(None)
    assert found.values.tobytes() == whole.values.tobytes()
    assert found.notes == whole.notes
