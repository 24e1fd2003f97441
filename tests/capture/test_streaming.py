"""The pass over the data: every run of every model gets the input as the user gave it."""

from functools import partial

import numpy as np
import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import DataLoader

import cka_probe as cp
from cka_probe.capture.recorder import LayerRecorder
from cka_probe.capture.streaming import Pass, SampleOrder

compared = partial(cp.compare, progress=False)


# --- a forward that changes its input -------------------------------------------------------------------------------


class Net(nn.Module):
    """Two linear layers behind a change of the input."""

    def __init__(self, seed, change):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.change = nn.Linear(8, 6), nn.Linear(6, 5), change

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.change(x))))


def in_place(x):
    return x.sub_(0.5).div_(0.25)


def out_of_place(x):
    return (x - 0.5) / 0.25


def through_data(x):
    x.data.sub_(0.5)  # torch does not count this change
    return x.div_(0.25)


def through_numpy(x):
    x.numpy()[:] -= 0.5
    return x.div_(0.25)


class Relu(nn.Module):
    """A network that starts with an operation in place, as generators and nets without a stem do."""

    def __init__(self, seed, inplace=True):
        super().__init__()
        torch.manual_seed(seed)
        self.relu, self.first, self.second = nn.ReLU(inplace=inplace), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.relu(x - 0) if not self.relu.inplace else self.relu(x))))


class Hooked(Net):
    """A hook of the user's normalises the input before the forward."""

    def __init__(self, seed, change=in_place):
        super().__init__(seed, lambda x: x)
        self.register_forward_pre_hook(lambda _module, inputs: (change(inputs[0]),))


def batches_of(count=3, size=10):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, 8, generator=generator) for _ in range(count)]


def new_shape(x):
    return (x.unsqueeze_(1).squeeze(1) - 0.5) / 0.25  # the values stay, the shape does not


CHANGES = {
    "the shape": (lambda seed: Net(seed, new_shape), lambda seed: Net(seed, out_of_place)),
    "in place": (lambda seed: Net(seed, in_place), lambda seed: Net(seed, out_of_place)),
    "through .data": (lambda seed: Net(seed, through_data), lambda seed: Net(seed, out_of_place)),
    "through numpy": (lambda seed: Net(seed, through_numpy), lambda seed: Net(seed, out_of_place)),
    "a ReLU in place": (Relu, lambda seed: Relu(seed, inplace=False)),
    "a hook before the forward": (Hooked, lambda seed: Hooked(seed, out_of_place)),
}


@pytest.fixture(params=CHANGES)
def nets(request):
    """Two networks that change their input, and the float64 reference of both, each on its own fresh copies."""
    changing, pure = CHANGES[request.param]
    features = [[cloned(pure(seed), batch) for batch in batches_of()] for seed in (0, 1)]
    return changing(0), changing(1), features


def test_every_model_gets_the_input_as_the_user_gave_it(nets):
    x, y, features = nets
    data = batches_of()
    assert_allclose(compared(x, y, data).values, reference_cka(*features), atol=1e-6)
    for batch, before in zip(data, batches_of(), strict=True):
        assert torch.equal(batch, before), "the batches of the user stay as they are"


def test_also_when_the_same_batches_are_used_again_and_a_network_meets_itself(nets):
    x, _, features = nets
    data = batches_of()
    first, second = compared(x, x, data), compared(x, x, data)
    assert_allclose(first.values, reference_cka(features[0]), atol=1e-6)
    assert_array_equal(first.values, second.values)


def test_also_in_compare_many(nets):
    x, y, features = nets
    result = cp.compare_many({"x": x, "copy": x, "y": y}, batches_of(), progress=False)
    frame = result.to_frame()
    assert_allclose(frame.loc["x", "y"].to_numpy(), reference_cka(*features), atol=1e-6)
    assert_allclose(frame.loc["x", "copy"].to_numpy(), reference_cka(features[0]), atol=1e-6)


def test_also_over_a_whole_data_set(nets):
    x, y, features = nets
    together = [[{name: np.concatenate([b[name] for b in side]) for name in side[0]}] for side in features]
    result = compared(x, y, batches_of(), scope="dataset")
    assert_allclose(result.values, reference_cka(*together), atol=1e-6)


def test_also_in_extract_and_in_signatures(nets):
    x, y, features = nets
    data = batches_of()
    for net, side in ((x, features[0]), (y, features[1])):
        for name, found in cp.extract(net, data, progress=False).items():
            assert_allclose(found.numpy(), np.concatenate([batch[name] for batch in side]), atol=1e-5)
    signatures = [cp.signature(net, data, progress=False) for net in (x, y)]
    assert_allclose(cp.compare_signatures(*signatures).values, reference_cka(*features), atol=1e-6)


class Twice:
    """Keeps clones, and asks for a second run of the first minibatch, as a keeper of Gram matrices may do."""

    takes_half = False
    takes_any_order = False
    reviewed = False

    def __init__(self):
        self.reviews = 0

    def __call__(self, name, features):
        return features.clone()

    def review(self, kept):
        self.reviews += 1
        return self.reviews != 1


def test_also_when_a_minibatch_runs_twice(nets):
    x, _, features = nets
    keep, found = Twice(), []
    recorder = LayerRecorder(x, "x", "leaves", "auto", keep)
    Pass([recorder], 4, progress=False).run(batches_of(), lambda _index, kept, _rows: found.append(kept[0]))
    assert keep.reviews == 4, "three minibatches, the first of them twice"
    for kept, expected in zip(found, features[0], strict=True):
        for name, tensor in zip(recorder.names, kept, strict=True):
            assert_allclose(tensor.numpy(), expected[name], atol=1e-5)


def test_a_forward_that_empties_its_batch():
    def forward(model, batch):
        x = batch.pop("x")
        batch["seen"].append(len(batch["seen"]))
        return model(x.add_(len(batch["seen"])))

    data = [{"x": x, "seen": []} for x in batches_of()]
    x, y = Net(0, out_of_place), Net(1, out_of_place)
    expected = reference_cka(*([cloned(net, b + 1) for b in batches_of()] for net in (x, y)))
    for _ in range(2):
        assert_allclose(compared(x, y, data, forward=forward).values, expected, atol=1e-6)
    assert all(list(batch) == ["x", "seen"] and batch["seen"] == [] for batch in data)


def test_views_of_one_array_stay_as_they_are():
    array = torch.cat(batches_of()).numpy().copy()
    before = array.copy()
    features = [[cloned(Net(seed, out_of_place), b) for b in batches_of()] for seed in (0, 1)]
    views = [torch.from_numpy(array[i : i + 10]) for i in (0, 10, 20)]
    assert_allclose(compared(Net(0, in_place), Net(1, in_place), views).values, reference_cka(*features), atol=1e-6)
    assert_array_equal(array, before)


def test_both_parts_of_paired_data_stay_as_they_are():
    data, data_y = batches_of(), [batch * 2 for batch in batches_of()]
    result = compared(Net(0, in_place), Net(1, in_place), data, data_y=data_y)
    features = [
        [cloned(Net(0, out_of_place), b) for b in batches_of()],
        [cloned(Net(1, out_of_place), b * 2) for b in batches_of()],
    ]
    assert_allclose(result.values, reference_cka(*features), atol=1e-6)
    assert torch.equal(data_y[0], batches_of()[0] * 2)


# --- a loader that fills one buffer again and again -----------------------------------------------------------------


def one_tensor(batches, after):
    """A generator that yields the same tensor, refilled; after each use it holds ``after``."""
    buffer = torch.empty_like(batches[0])
    for batch in batches:
        buffer.copy_(batch)
        yield buffer
        buffer.fill_(after)


def one_array(batches, after):
    """The same with tensors that are views of one numpy array."""
    array = np.empty(tuple(batches[0].shape), dtype=np.float32)
    for batch in batches:
        array[:] = batch.numpy()
        yield torch.from_numpy(array)
        array[:] = after


def one_pair(batches, after):
    """The same with (input, target) in one list, as a loader of its own that also cuts the last batch."""
    buffer, target = torch.empty_like(batches[0]), torch.zeros(len(batches[0]))
    pair = [buffer, target]
    for batch in batches:
        buffer[: len(batch)] = batch
        pair[:] = buffer[: len(batch)], target[: len(batch)]
        yield pair
        buffer.fill_(after)
        pair.clear()


def one_collate(batches, after):
    """A DataLoader whose collate function writes into one buffer; its last batch is smaller than the others."""
    buffer = torch.full_like(batches[0], after)

    def collate(samples):
        buffer.fill_(after)
        return {"x": torch.stack(samples, out=buffer[: len(samples)]), "names": ["a"] * len(samples)}

    return DataLoader(torch.cat(batches), batch_size=len(batches[0]), collate_fn=collate)


LOADERS = pytest.mark.parametrize("loader", [one_tensor, one_array, one_pair, one_collate])
AFTER = pytest.mark.parametrize("after", [0.0, float("nan")])


@LOADERS
@AFTER
@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_one_buffer_for_all_batches(loader, after, scope):
    x, y = Net(0, out_of_place), Net(1, out_of_place)
    result = compared(x, y, loader(batches_of(), after), scope=scope)
    features = [[cloned(net, batch) for batch in batches_of()] for net in (x, y)]
    if scope == "dataset":
        features = [[{name: np.concatenate([b[name] for b in side]) for name in side[0]}] for side in features]
    assert_allclose(result.values, reference_cka(*features), atol=1e-6)


@pytest.mark.parametrize("loader", [one_pair, one_collate])
def test_one_buffer_and_a_small_last_batch_that_is_joined(loader):
    x, y = Net(0, out_of_place), Net(1, out_of_place)
    batches = [*batches_of(), batches_of()[0][:2]]
    result = compared(x, y, loader(batches, float("nan")))
    joined = [*batches[:2], torch.cat(batches[2:])]
    assert_allclose(result.values, reference_cka(*([cloned(net, b) for b in joined] for net in (x, y))), atol=1e-6)


@LOADERS
def test_one_buffer_in_the_other_functions(loader):
    x, y = Net(0, out_of_place), Net(1, out_of_place)
    features = [[cloned(net, batch) for batch in batches_of()] for net in (x, y)]
    for name, found in cp.extract(x, loader(batches_of(), 0.0), progress=False).items():
        assert_allclose(found.numpy(), np.concatenate([batch[name] for batch in features[0]]), atol=1e-5)
    signatures = [cp.signature(net, loader(batches_of(), 0.0), progress=False) for net in (x, y)]
    assert_allclose(cp.compare_signatures(*signatures).values, reference_cka(*features), atol=1e-6)
    frame = cp.compare_many({"x": x, "y": y}, loader(batches_of(), 0.0), progress=False).to_frame()
    assert_allclose(frame.loc["x", "y"].to_numpy(), reference_cka(*features), atol=1e-6)


def test_two_loaders_that_fill_one_buffer():
    buffer = torch.empty(10, 8)

    def loader(scale):
        for batch in batches_of():
            yield torch.mul(batch, scale, out=buffer)

    x, y = Net(0, out_of_place), Net(1, out_of_place)
    result = compared(x, y, loader(1), data_y=loader(3))
    features = [[cloned(x, b) for b in batches_of()], [cloned(y, b * 3) for b in batches_of()]]
    assert_allclose(result.values, reference_cka(*features), atol=1e-6)


def test_a_resumed_run_reads_a_buffer_in_the_same_order(tmp_path):
    x, y = Net(0, out_of_place), Net(1, out_of_place)
    batches = batches_of(count=25, size=4)
    expected = reference_cka(*([cloned(net, batch) for batch in batches] for net in (x, y)))

    def broken():
        for index, batch in enumerate(one_tensor(batches, 0.0)):
            if index == 23:
                raise OSError("the disk is gone")
            yield batch

    with pytest.raises(OSError, match="the disk is gone"):
        compared(x, y, broken(), checkpoint=tmp_path / "half")
    result = compared(x, y, one_tensor(batches, 0.0), checkpoint=tmp_path / "half")
    assert_allclose(result.values, expected, atol=1e-6)


def test_a_loader_that_draws_random_numbers_leaves_the_generator_as_it_was():
    """Every iteration of a DataLoader begins with a random number; a training loop must not notice it."""
    net = Net(0, out_of_place)
    data = torch.utils.data.TensorDataset(torch.randn(24, 8))
    for size, shuffle in ((8, False), (9, True), (10, False)):
        before = torch.get_rng_state()
        compared(net, net, torch.utils.data.DataLoader(data, size, shuffle=shuffle))
        assert torch.equal(torch.get_rng_state(), before)


# --- the digest of the samples --------------------------------------------------------------------------------------


class Graph:
    """As a graph of PyG: tensors that only `to_dict` shows."""

    def __init__(self, x):
        self._store = {"x": x}

    def to_dict(self):
        return dict(self._store)

    def clone(self):
        return Graph(self._store["x"].clone())


def digest(*batches):
    order = SampleOrder()
    for batch in batches:
        order.update(batch)
    return order.hexdigest()


NESTED = [[torch.ones(2, 3), torch.ones(4, 3)], [torch.ones(2, 3), torch.zeros(4, 3)]]


@pytest.mark.parametrize(
    ("batch", "other"),
    [
        (torch.ones(3, 2), torch.zeros(3, 2)),
        (np.ones((3, 2)), np.zeros((3, 2))),
        (["a", "b"], ["a", "c"]),
        ({"text": ["a", "b"], "id": 3}, {"text": ["a", "b"], "id": 4}),
        (Graph(torch.ones(3)), Graph(torch.zeros(3))),
        (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
        *[tuple(torch.nested.nested_tensor(parts, layout=torch.jagged) for parts in NESTED)],
    ],
    ids=["tensors", "arrays", "texts", "texts and numbers", "graphs", "sparse", "nested"],
)
def test_other_samples_have_another_digest(batch, other):
    assert digest(batch) == digest(batch)
    assert digest(batch) != digest(other)
    assert digest(batch, other) != digest(other, batch)


def test_graphs_stay_as_they_are_and_signatures_tell_them_apart():
    def forward(model, graph):
        return model(graph.to_dict()["x"].mul_(2))

    net = Net(0, out_of_place)
    graphs = [Graph(batch) for batch in batches_of()]
    features = [cloned(net, batch * 2) for batch in batches_of()]
    for _ in range(2):
        result = compared(net, Net(0, out_of_place), graphs, forward=forward)
        assert_allclose(result.values, reference_cka(features), atol=1e-6)
    assert all(torch.equal(graph.to_dict()["x"], batch) for graph, batch in zip(graphs, batches_of(), strict=True))
    one, other = (cp.signature(net, data, forward=forward, progress=False) for data in (graphs, graphs[::-1]))
    assert one.order != other.order
