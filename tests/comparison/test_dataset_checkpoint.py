"""compare(scope="dataset", checkpoint=...): a call that was stopped is resumed by the next one, with the same bits."""

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network

import cka_probe as cp
from cka_probe.comparison import feature_blocks, held
from cka_probe.comparison.memory import ForwardMeter
from cka_probe.estimators.dataset import layer_parts

DATA = image_batches(30)
LAYERS = ["0", "1", "2", "4"]


class Stops:
    """Batches of which reading number ``read`` (from 1) fails at batch ``at``, as if the process were killed."""

    def __init__(self, at, read=1, error=OSError, batches=DATA):
        self.at, self.read, self.error, self.batches, self.reads = at, read, error, batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.reads += 1
        for index, batch in enumerate(self.batches):
            if (self.reads, index) == (self.read, self.at):
                raise self.error("gone")
            yield batch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def over(data=DATA, networks=None, **options):
    networks = networks or (small_network(0), small_network(1))
    return cp.compare(*networks, data, scope="dataset", progress=False, **options)


def stopped(path, at=25, read=1, networks=None, **options):
    with pytest.raises(OSError, match="gone"):
        over(Stops(at, read), networks, checkpoint=path, **options)
    assert path.exists()


def assert_same_bits(found, expected):
    for name in ("values", "standard_error", "p_value", "chance"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
    assert found.notes == expected.notes
    assert {key: part for key, part in found.meta.items() if key != "memory"} == {
        key: part for key, part in expected.meta.items() if key != "memory"
    }


@pytest.mark.parametrize(
    "options",
    [
        {"route": "moments"},
        {"route": "moments", "outputs": True, "estimator": "biased"},
        {"route": "grams"},
        {"route": "disk", "kernel": cp.RBF()},
        {"route": "blocks"},
        # 128 projections, whatever the process has grown by: it counts, and a fresh process grows by 18 MiB
        {"route": "sketch", "kernel": cp.RBF(), "memory": "110MiB", "layers": ["2", "4"]},
        {"measure": "procrustes"},
    ],
    ids=str,
)
def test_a_pass_goes_on_from_its_middle(options, path):
    whole = over(**options)
    stopped(path, **options)
    nets, seen = (small_network(0), small_network(1)), []
    nets[0].register_forward_hook(lambda *_: seen.append(1))
    resumed = over(networks=nets, checkpoint=path, **options)
    assert len(seen) == 11  # 20 of 30 batches were saved, and the first one runs again
    assert_same_bits(resumed, whole)
    assert not list(path.parent.iterdir())


@pytest.fixture
def small_parts(monkeypatch):
    """Networks so small that a part of a layer, a slab and the noise of the meter would be all of the memory."""
    monkeypatch.setattr(ForwardMeter, "_used", lambda _: None)
    monkeypatch.setattr(layer_parts, "PART", 4000)
    monkeypatch.setattr(held, "SLAB", 4000)
    monkeypatch.setattr(feature_blocks, "PANEL", 64)


def test_of_several_passes_those_that_are_done_are_not_run_again(path, small_parts):
    nets, batches = (small_network(0, width=400), small_network(1, width=480)), DATA[:6]
    options = {"layers": LAYERS, "memory": "1800KiB", "route": "grams", "outputs": True}
    data = Stops(0, read=0, batches=batches)
    whole = over(data, nets, **options)
    assert data.reads == whole.meta["passes"] > 3
    with pytest.raises(OSError, match="gone"):
        over(Stops(4, read=3, batches=batches), nets, checkpoint=path, **options)
    data.reads = 0
    resumed = over(data, nets, checkpoint=path, **options)
    assert data.reads == whole.meta["passes"] - 2
    assert_same_bits(resumed, whole)
    with pytest.raises(OSError, match="gone"):
        over(Stops(4, read=3, batches=batches), nets, checkpoint=path, **options)
    with pytest.raises(ValueError, match="made from other samples, or in another order"):
        over(DATA[12:18], nets, checkpoint=path, **options)


def test_ctrl_c_saves_the_batches_until_then(path):
    partial = over(Stops(27, error=KeyboardInterrupt), checkpoint=path, route="moments")
    assert partial.meta["partial"]
    assert partial.meta["batches"] == 27
    seen, nets = [], (small_network(0), small_network(1))
    nets[0].register_forward_hook(lambda *_: seen.append(1))
    assert_same_bits(over(networks=nets, checkpoint=path, route="moments"), over(route="moments"))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"estimator": "biased"}, r"kernel and estimator was unbiased HSIC.* and is now biased"),
        ({"route": "moments"}, r"route was 'grams' and is now 'moments'"),
        ({"memory": "2GiB"}, r"memory was '1073741824 bytes' and is now '2147483648 bytes'"),
        ({"outputs": True}, r"outputs was 'False' and is now 'True'"),
        ({"layers": LAYERS}, r"layers of model_x"),
        ({"data": image_batches(30, seed=5)}, "made from other samples, or in another order"),
        ({"data": [*DATA[:7], DATA[8], DATA[7], *DATA[9:]]}, "made from other samples, or in another order"),
        ({"data": DATA[:22]}, r"batches in `data` was 30 and is now 22"),
        ({"networks": (small_network(0), small_network(2))}, r"weights of model_y"),
        ({"scope": "minibatch", "memory": None, "route": None}, r"scope was 'dataset' and is now 'minibatch'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_ingredients_are_refused_by_name(changed, message, path):
    options = {"memory": "1GiB", "route": "grams"}
    stopped(path, **options)
    before = path.read_bytes()
    nets = changed.pop("networks", (small_network(0), small_network(1)))
    options = {"data": DATA, "scope": "dataset", "progress": False, "checkpoint": path, **options, **changed}
    with pytest.raises(ValueError, match=message):
        cp.compare(*nets, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("route", ["moments", "disk"])
def test_a_network_that_computes_something_else_is_refused(route, path):
    stopped(path, route=route)
    nets = small_network(0), small_network(1)
    nets[1][0].register_forward_hook(lambda _module, _given, out: out * 1.1)
    with pytest.raises(ValueError, match=r"on the first batch, '.*' of model_y.* gives other values than before"):
        over(networks=nets, checkpoint=path, route=route)


def test_a_missing_file_of_features_is_named(path):
    stopped(path, route="disk")
    features = path.with_name("run.ckpt.features")
    with features.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"run\.ckpt\.features with the features is missing or too short"):
        over(checkpoint=path, route="disk")


def test_without_room_for_features_a_note_says_that_nothing_is_saved(path, monkeypatch):
    monkeypatch.setattr("cka_probe.comparison.dataset_pass.disk_room", lambda *_, **__: 1000)
    found = over(checkpoint=path, route="grams")
    assert any("no room for" in note and "begins again" in note for note in found.notes)
    np.testing.assert_array_equal(found.values, over(route="grams").values)
    assert not any("no room" in note for note in over(checkpoint=path, route="moments").notes)


def test_many_models_and_a_random_state_go_on_too(path):
    class Noisy(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    def run(data, **options):
        torch.manual_seed(3)
        nets = {"a": Noisy(*small_network(0)), "b": small_network(1)}
        return cp.compare_many(nets, data, layers=LAYERS, scope="dataset", route="disk", progress=False, **options)

    with pytest.raises(OSError, match="gone"):
        run(Stops(23), checkpoint=path)
    assert_same_bits(run(DATA, checkpoint=path), run(DATA))
