"""The modules that `layers` selects in small and real networks, its error messages, and the table of layers."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from cka_probe.capture.layers import layer_table, select_layers, unwrap


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x):
        return x + self.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.Sequential(nn.Sequential(Block(4), Block(4)), nn.Sequential(Block(4)))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    return Net()


def paths(model, layers):
    return list(select_layers(model, layers).paths)


BLOCKS = ["stages.0.0", "stages.0.1", "stages.1.0"]


def test_leaves_are_the_modules_without_children_in_the_order_of_definition(net):
    inside = [f"{block}.{part}" for block in BLOCKS for part in ("conv", "norm", "relu")]
    assert paths(net, "leaves") == ["stem", *inside, "head"]


def test_blocks_are_the_outermost_composite_modules_of_containers(net):
    assert paths(net, "blocks") == BLOCKS


@pytest.mark.parametrize(
    ("layers", "picked"),
    [
        ("head", ["head"]),
        ("", [""]),
        (["head", "stem"], ["head", "stem"]),
        ("stages.**.conv", [f"{block}.conv" for block in BLOCKS]),
        ("stages.0.?.norm", ["stages.0.0.norm", "stages.0.1.norm"]),
        (r"re:stages\.\d\.\d", BLOCKS),
        (nn.BatchNorm2d, [f"{block}.norm" for block in BLOCKS]),
        (Block, BLOCKS),
        (lambda name, module: isinstance(module, nn.Linear) or name == "stem", ["stem", "head"]),
        (["head", nn.BatchNorm2d, "stages.*.*.norm"], ["head", *(f"{block}.norm" for block in BLOCKS)]),
        (("stem", "blocks"), ["stem", *BLOCKS]),
    ],
    ids=["path", "root", "order", "glob", "glob-one", "regex", "class", "own-class", "predicate", "mixed", "tuple"],
)
def test_every_way_to_choose(net, layers, picked):
    assert paths(net, layers) == picked


def test_only_paths_that_are_written_out_count_as_named(net):
    selection = select_layers(net, ["head", "stages.*.*.conv"])
    assert selection.named == {"head"}


def test_a_glob_passes_lists_of_modules_over_because_they_never_run():
    net = nn.Sequential(OrderedDict(stages=nn.ModuleList([nn.Linear(3, 3)]), head=nn.Sequential(nn.Linear(3, 2))))
    assert select_layers(net, "**").paths == ("stages.0", "head", "head.0")
    assert select_layers(net, "stage?").paths == ("stages",)  # nothing else fits, and the run says what is wrong


def test_a_path_with_the_characters_of_a_glob_is_still_a_path():
    net = nn.Module()
    net.add_module("a[0]", nn.Linear(2, 2))
    net.add_module("a0", nn.Linear(2, 2))
    assert paths(net, "a[0]") == ["a[0]"]


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("heads", r"Net has no layer 'heads'\. Did you mean 'head'"),
        ("stages.0.0.con", r"Net has no layer 'stages\.0\.0\.con'\. Did you mean 'stages\.0\.0\.conv'"),
        ("xyz", r"Net has no layer 'xyz'\. Its layers are 'stem', .* and 11 more\."),
        ("decoder.*", r"The pattern 'decoder\.\*' matches no layer of Net\. Its layers are 'stem'"),
        ("re:decoder", r"The pattern 're:decoder' matches no layer of Net"),
        ("re:(", r"`layers`: '\(' is not a regular expression: "),
        (nn.LSTM, r"Net has no layer of type LSTM\."),
        (lambda _name, _module: False, r"The predicate in `layers` selects no layer of Net\."),
        ([], r"`layers` is empty: name at least one layer\."),
    ],
    ids=["typo", "typo-inside", "nothing-near", "glob", "regex", "bad-regex", "class", "predicate", "empty"],
)
def test_errors_for_a_selection_without_layers(net, layers, message):
    with pytest.raises(ValueError, match=message):
        select_layers(net, layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (3, r"`layers` must be a name, pattern, type, function or a list of these, got 3\."),
        ([3], r"`layers` may hold names, patterns, types and functions, not int\."),
        (int, r"`layers`: int is not a torch\.nn\.Module class\."),
    ],
)
def test_errors_for_a_selection_of_the_wrong_type(net, layers, message):
    with pytest.raises(TypeError, match=message):
        select_layers(net, layers)


def test_a_module_in_place_of_its_path(net):
    with pytest.raises(TypeError, match=r"`layers` holds a Sequential module\. Name it by its path: 'stages\.0'\."):
        select_layers(net, [net.stages[0]])
    with pytest.raises(TypeError, match=r"`layers` holds a Linear module\. Name it by its path: its path\."):
        select_layers(net, nn.Linear(2, 2))


def test_a_model_that_is_no_module():
    with pytest.raises(TypeError, match=r"A model must be a torch\.nn\.Module, got function\."):
        select_layers(lambda x: x)


@pytest.mark.filterwarnings("ignore:`?torch.jit")  # deprecated in torch, but still in use
def test_a_model_in_torchscript():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"A model in TorchScript runs no hooks\. Pass the module"):
        select_layers(scripted)


def test_a_model_without_blocks():
    with pytest.raises(
        ValueError, match=r"Sequential has no repeated blocks: .* Use layers=\"leaves\" or name its layers"
    ):
        select_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks")


# --- real networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 8, "layer1.0", "layer4.1"),
        ("resnet50", 16, "layer1.0", "layer4.2"),
        ("densenet121", 7, "features.denseblock1", "features.denseblock4"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"),
        ("swin_t", 15, "features.1.0", "features.7.1"),
        ("googlenet", 14, "conv1", "aux2"),
        ("inception_v3", 17, "Conv2d_1a_3x3", "Mixed_7c"),
    ],
)
def test_blocks_of_torchvision_networks(name, count, first, last):
    with torch.device("meta"):  # without memory for weights
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        found = paths(torchvision.models.get_model(name, weights=None, **extra), "blocks")
    assert (len(found), found[0], found[-1]) == (count, first, last)


class DoubleConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.double = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())


class Down(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = DoubleConv()


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(2), Block(2)])


def side_by_side(**children):
    net = nn.Module()
    for name, child in children.items():
        net.add_module(name, child)
    return net


def test_three_modules_of_one_class_are_blocks_and_so_are_the_composite_modules_beside_them():
    net = side_by_side(inc=DoubleConv(), d1=Down(), d2=Down(), d3=Down(), out=nn.Conv2d(3, 1, 1))
    assert paths(net, "blocks") == ["inc", "d1", "d2", "d3"]


def test_a_backbone_beside_three_heads_gives_its_own_blocks():
    net = side_by_side(body=Backbone(), a=DoubleConv(), b=DoubleConv(), c=DoubleConv())
    assert paths(net, "blocks") == ["body.blocks.0", "body.blocks.1", "a", "b", "c"]


def test_two_modules_of_one_class_give_their_own_blocks():
    """As in a network with an encoder and a decoder, or with two towers."""
    net = side_by_side(left=Backbone(), right=Backbone())
    assert paths(net, "blocks") == ["left.blocks.0", "left.blocks.1", "right.blocks.0", "right.blocks.1"]


def test_a_shared_module_is_one_layer():
    shared, block = nn.Linear(2, 2), Block(2)
    net = side_by_side(a=shared, b=nn.Sequential(shared, nn.ReLU()), blocks=nn.ModuleList([block, block]))
    assert paths(net, "leaves") == ["a", "b.1", "blocks.0.conv", "blocks.0.norm", "blocks.0.relu"]
    assert paths(net, "blocks") == ["blocks.0"]


def test_attention_is_a_leaf_because_its_projection_is_never_called():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert "self_attn" in paths(net, "leaves")
    assert "self_attn.out_proj" not in paths(net, "leaves")


# --- wrappers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
        lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    ],
    ids=["DataParallel", "compile", "compiled-inside", "compiled-outside"],
)
def test_wrappers_are_looked_through(net, wrap):
    assert unwrap(wrap(net)) is net
    assert paths(wrap(net), "blocks") == BLOCKS


# --- the table of `cka-probe info` --------------------------------------------------------------------------------


def test_the_table_lists_modules_in_the_order_of_execution_with_shapes_and_parameters(net):
    net.unused = nn.Linear(3, 3)
    try:
        table = layer_table(net, lambda model: model(torch.zeros(2, 3, 8, 8)))
    finally:
        del net.unused
    rows = {path: rest for path, *rest in table}
    assert rows["stem"] == ["Conv2d", "(2, 4, 6, 6)", 112]
    assert rows["head"] == ["Linear", "(2, 2)", 10]
    assert rows["unused"] == ["Linear", "", 12]
    names = list(rows)
    assert names.index("stem") < names.index("stages.0.0.conv") < names.index("stages.0.0") < names.index("head")
    assert names[-1] == "unused"


def test_the_table_changes_nothing_in_the_network(net):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    layer_table(net, lambda model: model(torch.randn(2, 3, 8, 8)))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_table_leaves_no_hook_behind_when_the_network_fails(net):
    with pytest.raises(RuntimeError):
        layer_table(net, lambda model: model(torch.zeros(2, 5, 8, 8)))
    assert not any(module._forward_hooks for module in net.modules())
