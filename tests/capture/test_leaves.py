""" "leaves" and "blocks" of parametrised, adapted, quantised and graph layers: the layer itself, not what serves it."""

import pytest
import torch
from activations import reference_cka
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import cka_probe as cp
from cka_probe.capture.layers import leaf_layers, select_layers


def paths(model, layers="leaves"):
    return list(select_layers(model, layers).paths)


def values_of(net, x, names, layers="leaves"):
    """The comparison of a network with itself, checked against float64 on outputs that plain hooks copied."""
    result = cp.compare(net, net, x, layers=layers, progress=False)
    assert list(result.rows) == names
    kept = {}
    modules = dict(net.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out.double().clone()}))
        for name in names
    ]
    with torch.no_grad():
        net.eval()(x)
    for handle in handles:
        handle.remove()
    oracle = {name: kept[name].reshape(len(x), -1).numpy() for name in names}
    assert_allclose(result.values, reference_cka([oracle]), atol=1e-6)
    return result


def data(n=24, width=6):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


# --- parametrised layers ------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


WAYS = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": doubled,
    "two": lambda layer: doubled(parametrizations.weight_norm(layer)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_parametrised_layer_is_the_leaf(way):
    """n equals the width, so that the weight's rows could pass for samples."""
    torch.manual_seed(0)
    net = nn.Sequential(WAYS[way](nn.Linear(6, 6)), nn.ReLU(), WAYS[way](nn.Linear(6, 6)))
    values_of(net, data(n=6), ["0", "1", "2"])


@pytest.mark.parametrize(
    "layers",
    ["**", "re:.*", nn.Module, nn.Identity, lambda _name, _module: True],
    ids=["glob", "expression", "class", "Identity", "function"],
)
def test_no_pattern_selects_the_modules_that_compute_a_weight(layers):
    net = nn.Sequential(
        WAYS["two"](nn.Linear(6, 6)), nn.Identity(), doubled(nn.LSTM(6, 6, batch_first=True)) if 0 else nn.ReLU()
    )
    assert not [path for path in paths(net, layers) if "parametrizations" in path]


def test_a_module_inside_parametrizations_that_is_written_out_is_an_error_that_names_the_layer():
    net = nn.Sequential(nn.Sequential(doubled(nn.Linear(6, 6))))
    for path in ("0.0.parametrizations.weight", "0.0.parametrizations.weight.0"):
        with pytest.raises(ValueError, match=rf"'{path}' of Sequential computes a weight.* Choose the layer .*'0\.0'"):
            select_layers(net, path)


def test_parametrised_layers_in_a_sequential_are_no_blocks():
    block = nn.Sequential(doubled(nn.Linear(6, 6)), nn.ReLU())
    with pytest.raises(ValueError, match="has no repeated blocks"):
        select_layers(block, "blocks")
    assert paths(nn.Sequential(block, nn.ReLU()), "leaves") == ["0.0", "0.1", "1"]


def test_a_composite_module_with_a_parameter_that_is_parametrised_keeps_its_layers():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(x) * self.weight

    torch.manual_seed(0)
    values_of(nn.Sequential(doubled(Scaled()), nn.Tanh()), data(), ["0.inner", "1"])


def test_layers_with_the_old_hooks_of_weight_norm_stay_leaves():
    assert paths(nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6)), nn.ReLU())) == ["0", "1"]


# --- layers with children that serve them -------------------------------------------------------------------------


class LoraByInheritance(nn.Linear):
    """As in loralib."""

    def __init__(self, width):
        super().__init__(width, width)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(width, 2))
        self.lora_dropout = nn.Dropout(0.1)

    def forward(self, x):
        return super().forward(x) + self.lora_dropout(x) @ self.lora_A.T @ self.lora_B.T


class LinearWithLoRA(nn.Module):
    """As in many notebooks."""

    def __init__(self, width):
        super().__init__()
        self.linear, self.lora = nn.Linear(width, width), nn.Sequential(nn.Linear(width, 2), nn.Linear(2, width))

    def forward(self, x):
        return self.linear(x) + self.lora(x)


class LoRALinear(nn.Module):
    """Parts with names of their own."""

    def __init__(self, width):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(width, width), nn.Linear(width, 2), nn.Linear(2, width)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class OwnWeightAndLora(nn.Module):
    """As in torchtune."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.dropout, self.lora_a, self.lora_b = nn.Identity(), nn.Linear(width, 2), nn.Linear(2, width)

    def forward(self, x):
        return x @ self.weight.T + self.lora_b(self.lora_a(self.dropout(x)))


class FakeQuantised(nn.Linear):
    """As in quantisation-aware training."""

    def __init__(self, width):
        super().__init__(width, width)
        self.weight_quantiser = Doubled()

    def forward(self, x):
        return nn.functional.linear(x, self.weight_quantiser(self.weight), self.bias)


class FakeQuantisedNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        self.weight_quantiser = Doubled()

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight_quantiser(self.weight), self.bias)


@pytest.mark.parametrize(
    "kind", [LoraByInheritance, LinearWithLoRA, LoRALinear, OwnWeightAndLora, FakeQuantised, FakeQuantisedNorm]
)
def test_an_adapted_layer_is_the_leaf(kind):
    torch.manual_seed(0)
    values_of(nn.Sequential(kind(6), nn.ReLU(), kind(6)), data(n=6), ["0", "1", "2"])


def test_a_network_that_is_called_after_lora_keeps_its_layers():
    class LoRANet(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), LinearWithLoRA(6)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    assert paths(LoRANet()) == ["first", "second"]


def test_an_activation_inside_a_norm_stays_a_layer():
    """As in timm's BatchNormAct2d: the activation behind a norm is a layer wherever it stands."""

    class NormAct(nn.BatchNorm1d):
        def __init__(self, width):
            super().__init__(width)
            self.drop, self.act = nn.Identity(), nn.ReLU()

        def forward(self, x):
            return self.act(self.drop(super().forward(x)))

    values_of(nn.Sequential(nn.Linear(6, 6), NormAct(6)), data(), ["0", "1.drop", "1.act"])


@pytest.mark.filterwarnings("ignore:`?torch.jit")  # deprecated in torch, but still in use
def test_a_part_in_torchscript_is_left_out_with_a_note_because_it_runs_no_hooks():
    torch.manual_seed(0)
    net = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, 3))
    result = values_of(net, data(), ["1"])
    assert len(result.notes) == 1
    assert "'0' was left out: it is in TorchScript, which runs no hooks" in result.notes[0]
    with pytest.raises(ValueError, match=r"Layer '0' of Sequential is in TorchScript, which runs no hooks"):
        select_layers(net, ["0", "1"])


def test_modules_that_cannot_run_are_no_leaves():
    net = nn.Sequential(nn.Linear(6, 6))
    net.prompts, net.table = nn.ParameterList([torch.ones(2)]), nn.ParameterDict({"a": torch.ones(2)})
    net.spare = nn.ModuleList()
    assert leaf_layers(net) == ["0"]


def test_attention_hides_everything_inside_it():
    net = nn.Sequential(parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight"))
    assert paths(net) == ["0"]


# --- libraries ----------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


PEFT = {
    "lora": lambda peft: peft.LoraConfig(target_modules=["fc1", "fc2"], init_lora_weights=False),
    "dora": lambda peft: peft.LoraConfig(target_modules=["fc1"], use_dora=True, init_lora_weights=False),
    "saved": lambda peft: peft.LoraConfig(target_modules=["fc1"], modules_to_save=["fc2"], init_lora_weights=False),
    "tokens": lambda peft: peft.LoraConfig(target_modules=["fc1"], trainable_token_indices={"words": [1, 2]}),
    "ia3": lambda peft: peft.IA3Config(target_modules=["fc1"], feedforward_modules=[]),
    "loha": lambda peft: peft.LoHaConfig(target_modules=["fc1"], init_weights=False),
    "vera": lambda peft: peft.VeraConfig(target_modules=["fc1"]),
    "oft": lambda peft: peft.OFTConfig(target_modules=["fc1"], oft_block_size=2, r=0),
}


@pytest.mark.parametrize("method", PEFT)
def test_peft_keeps_the_leaves_of_the_network(method):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net, names = Mlp(), ["fc1", "act", "fc2"]
    if method == "tokens":
        net.words, names = nn.Embedding(5, 6), [*names, "words"]
    net = peft.get_peft_model(net, PEFT[method](peft))
    assert paths(net) == [f"base_model.model.{name}" for name in names]
    result = values_of(
        net, data(n=6), [f"base_model.model.{name}" for name in names[:3]], ["**.fc1", "**.act", "**.fc2"]
    )
    assert not result.notes


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GATv2Conv", "GINConv", "TransformerConv", "DenseGCNConv"])
def test_message_passing_is_a_leaf_and_a_block(kind):
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    maker = getattr(geometric, kind)
    make = (lambda: maker(Mlp())) if kind == "GINConv" else (lambda: maker(6, 6))
    convs = nn.ModuleList([make(), make()])
    net = nn.Module()
    net.convs, net.act = convs, nn.ReLU()
    assert paths(net) == ["convs.0", "convs.1", "act"]
    assert paths(net, "blocks") == ["convs.0", "convs.1"]


DEPRECATED = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor"
)


@DEPRECATED
def test_layers_in_quantisation_aware_training_are_leaves():
    quantization = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(6, 6), nn.ReLU()).train()
    net.qconfig = quantization.QConfig(
        activation=quantization.NoopObserver, weight=quantization.default_weight_fake_quant
    )
    quantization.prepare_qat(net, inplace=True)
    assert paths(net) == ["0", "1", "2", "3", "4"]
    values_of(net, data()[..., None], ["0", "1", "2", "3", "4"])


@DEPRECATED
def test_layers_with_observers_of_static_quantisation_are_leaves():
    quantization = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(0)
    net = nn.Sequential(Mlp(), nn.ReLU())
    net.qconfig = quantization.QConfig(
        activation=quantization.MinMaxObserver, weight=quantization.default_weight_observer
    )
    quantization.prepare(net.eval(), inplace=True)
    values_of(net, data(), ["0.fc1", "0.act", "0.fc2", "1"])


@DEPRECATED
def test_observers_between_layers_are_no_leaves_but_sums_are():
    quantization = pytest.importorskip("torch.ao.quantization")

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.linear, self.add = (
                quantization.QuantStub(),
                nn.Linear(6, 6),
                nn.quantized.FloatFunctional(),
            )

        def forward(self, x):
            x = self.quant(x)
            return self.add.add(x, self.linear(x))

    net = Residual().eval()
    expected = ["quant", "linear", "add.activation_post_process"]
    assert paths(net) == expected
    net.qconfig = quantization.QConfig(
        activation=quantization.MinMaxObserver, weight=quantization.default_weight_observer
    )
    quantization.prepare(net, inplace=True)
    values_of(net, data(), expected)
    outer = nn.Sequential(nn.Linear(6, 6), quantization.MinMaxObserver(), nn.ReLU())
    assert paths(outer) == ["0", "2"]


@DEPRECATED
def test_layers_of_dynamic_quantisation_are_leaves():
    quantization = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(0)
    net = quantization.quantize_dynamic(Mlp(), {nn.Linear}, dtype=torch.qint8)
    values_of(net, data(), ["fc1", "act", "fc2"])
