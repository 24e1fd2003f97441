"""compare() on networks of torchvision, timm and Hugging Face against a float64 reference on copied activations."""

import numpy as np
import pytest
import torch
import torchvision
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp


def images(side, n=8, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def check(net, batch, layers, **how):
    """The result of ``net`` against itself, after a check against the float64 reference."""
    result = cp.compare(net, net, batch, layers=layers, progress=False)
    rows = set(result.rows)
    oracle = cloned(net, batch, lambda name, _m: name in rows or f"{name}#2" in rows, **how)
    oracle = {name: oracle[name] for name in result.rows}
    expected = reference_cka([oracle])
    assert_allclose(result.values, expected, atol=1e-6)
    alive = ~np.isnan(np.diag(result.values))
    assert_allclose(np.diag(result.values)[alive], 1.0, atol=1e-6)
    constant = [name for name, x in oracle.items() if (x == x[0]).all()]
    assert [name for name, ok in zip(result.rows, alive, strict=True) if not ok] == constant
    return result


def unmeasured(net, result):
    """Leaves of the network that are not a row of the result."""
    rows = {name.partition("#")[0] for name in result.rows}
    return {name for name, m in net.named_modules() if not list(m.children()) and name not in rows}


# --- torchvision ---------------------------------------------------------------------------------------------------

MODELS = {
    # name: (arguments, side of the images, rows of "leaves", rows of "blocks")
    "resnet18": ({}, 32, 60, 8),
    "resnet50": ({}, 32, 158, 16),
    "convnext_tiny": ({}, 32, 156, 19),
    "vit_b_16": ({"image_size": 32}, 32, 112, 12),
    "swin_t": ({}, 64, 122, 15),
    "densenet121": ({}, 32, 366, 7),
}


@pytest.fixture(scope="module", params=MODELS)
def torchvision_model(request):
    arguments, side, *counts = MODELS[request.param]
    torch.manual_seed(0)
    return torchvision.models.get_model(request.param, weights=None, **arguments), images(side), *counts


def test_torchvision_blocks(torchvision_model):
    net, batch, _, count = torchvision_model
    result = check(net, batch, "blocks")
    assert len(result.rows) == count
    assert not result.notes


def test_torchvision_leaves(torchvision_model):
    net, batch, count, _ = torchvision_model
    result = check(net, batch, "leaves")
    assert len(result.rows) == count
    # Left out: projections of attention, because a function uses their weights and the module does not run. Their
    # result is compared all the same, as the output of the attention or of the dropout that follows.
    assert {name.rpartition(".")[2] for name in unmeasured(net, result)} <= {"out_proj", "qkv", "proj"}


def test_attention_is_compared_although_its_projection_does_not_run():
    torch.manual_seed(0)
    net = torchvision.models.vit_b_16(image_size=32)
    result = cp.compare(net, net, images(32), layers="**.self_attention", progress=False)
    assert len(result.rows) == 12
    assert not result.notes


def test_layers_of_swin_v2_without_samples_are_left_out_with_one_note():
    """The position bias does not depend on the samples; one note for each reason says so, not one for each layer."""
    torch.manual_seed(0)
    net = torchvision.models.swin_v2_t()
    result = check(net, images(64, n=6), "leaves")
    assert len(result.rows) == 122
    assert {name.rpartition("attn.")[2] for name in unmeasured(net, result)} == {
        *("qkv", "proj"),
        *("cpb_mlp.0", "cpb_mlp.1", "cpb_mlp.2"),
    }
    assert len(result.notes) < 8


def test_a_detector_by_its_backbone():
    torch.manual_seed(0)
    net = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    data = [([image[:, :50, : 40 + 5 * i] for i, image in enumerate(images(64, n=5))], None) for _ in range(2)]
    result = cp.compare(
        net, net, data, layers="backbone.body.**", forward=lambda model, batch: model(batch[0]), progress=False
    )
    assert result.meta["samples"] == 10
    assert len(result.rows) > 100


# --- timm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "leaves", "blocks"),
    [("vit_tiny_patch16_224", {"img_size": 32}, 225, 12), ("resnet18", {}, None, 8), ("mixer_s32_224", {}, None, 8)],
)
def test_timm(name, arguments, leaves, blocks):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, **arguments)
    side = 224 if "mixer" in name else 32
    result = check(net, images(side), "blocks")
    assert len(result.rows) == blocks
    if leaves is not None:
        result = check(net, images(side), "leaves")
        assert len(result.rows) == leaves
        assert {n.rpartition(".")[2] for n in unmeasured(net, result)} <= {"attn_drop"}  # runs inside a fused function


# --- Hugging Face --------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 90}


def hugging_face(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    grouped = {"num_key_value_heads": 2}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 90, "n_positions": 32}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    makers = {
        "bert": lambda t: t.BertModel(t.BertConfig(**SIZES)),
        "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**gpt2, **tokens)),
        "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **grouped, **tokens)),
        "qwen3": lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, **grouped, **tokens, head_dim=8)),
    }
    if name == "qwen3" and not hasattr(transformers, "Qwen3Config"):
        pytest.skip("this transformers has no Qwen3")
    return makers[name](transformers)


def sentences(*, extra=0, left=False):
    generator = torch.Generator().manual_seed(2)
    batches = []
    for _ in range(2):
        lengths = torch.randint(2, 10, (7,), generator=generator).tolist()
        t = max(lengths) + extra
        ids, mask = torch.zeros(7, t, dtype=torch.long), torch.zeros(7, t, dtype=torch.long)
        for row, length in enumerate(lengths):
            place = slice(t - length, t) if left else slice(0, length)
            ids[row, place] = torch.randint(3, 90, (length,), generator=generator)
            mask[row, place] = 1
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids})
    return batches


def over_real_tokens(mask):
    """The mean over real tokens of each sample; activations without tokens are flattened."""

    def features(x):
        if x.ndim < 3:
            return x.reshape(x.shape[0], -1)
        x = x.reshape(*x.shape[:2], -1)
        lengths = mask.sum(1).tolist()
        return torch.stack([rows[0] + (rows[:t] - rows[0]).mean(0) for rows, t in zip(x, lengths, strict=True)])

    return features


def run(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


@pytest.mark.parametrize("layers", ["leaves", "blocks"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen3"])
def test_language_models_with_padded_batches(name, layers):
    net, batches = hugging_face(name), sentences()
    result = cp.compare(net, net, batches, layers=layers, progress=False)
    rows = set(result.rows)
    oracle = [
        cloned(net, b, lambda n, _m: n in rows, run=run, features=over_real_tokens(b["attention_mask"]))
        for b in batches
    ]
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)
    assert list(oracle[0]) == list(result.rows)
    # One note for layers without samples, one for parts of fused functions, one for the constant token type.
    assert len(result.notes) <= 3
    if layers == "blocks":
        assert len(result.rows) == 2
        assert not result.notes
    padded = cp.compare(net, net, sentences(extra=5), layers=layers, progress=False)
    assert padded.rows == result.rows
    assert_allclose(padded.values, result.values, atol=1e-6)


def test_padding_on_the_left_of_a_model_with_relative_positions():
    """With rotary positions, padding on the left gives the same result up to the rounding of the network."""
    net = hugging_face("llama")
    right, left = (
        cp.compare(net, net, sentences(left=side), layers="blocks", progress=False) for side in (False, True)
    )
    assert_allclose(left.values, right.values, atol=1e-4)


def test_models_with_different_tokenizers():
    """The second model gets the same sentences with other ids and lengths."""
    bert, gpt2 = hugging_face("bert"), hugging_face("gpt2")
    other = [
        {
            "input_ids": b["input_ids"].repeat_interleave(2, 1),
            "attention_mask": b["attention_mask"].repeat_interleave(2, 1),
        }
        for b in sentences()
    ]
    result = cp.compare(bert, gpt2, sentences(), data_y=other, layers="blocks", progress=False)
    x, y = (
        [
            cloned(net, b, lambda n, _m, names=names: n in names, run, over_real_tokens(b["attention_mask"]))
            for b in batches
        ]
        for net, batches, names in ((bert, sentences(), result.rows), (gpt2, other, result.columns))
    )
    assert_allclose(result.values, reference_cka(x, y), atol=1e-6)


def test_the_last_token_of_a_decoder():
    net, batches = hugging_face("gpt2"), sentences()
    result = cp.compare(net, net, batches, layers="blocks", pooling="last", progress=False)
    oracle = []
    for batch in batches:
        last = batch["attention_mask"].sum(1) - 1
        oracle.append(
            cloned(
                net,
                batch,
                lambda n, _m: n in result.rows,
                run,
                lambda x, last=last: torch.stack([rows[int(i)] for rows, i in zip(x, last, strict=True)]),
            )
        )
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


def test_batches_of_a_hugging_face_tokenizer():
    transformers = pytest.importorskip("transformers")
    net, batches = hugging_face("bert"), sentences()
    encodings = [transformers.BatchEncoding(batch) for batch in batches]
    expected = cp.compare(net, net, batches, layers="blocks", progress=False).values
    assert np.array_equal(cp.compare(net, net, encodings, layers="blocks", progress=False).values, expected)
    by_hand = cp.compare(
        net,
        net,
        encodings,
        layers="blocks",
        progress=False,
        forward=lambda model, b: model(b.input_ids, attention_mask=b.attention_mask),
    )
    assert np.array_equal(by_hand.values, expected)


# --- custom networks -----------------------------------------------------------------------------------------------


class DoubleConv(nn.Sequential):
    def __init__(self, a, b):
        super().__init__(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class Down(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(2), DoubleConv(a, b)

    def forward(self, x):
        return self.conv(self.pool(x))


class Up(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(a, b, 2, 2), DoubleConv(2 * b, b)

    def forward(self, x, skip):
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 4)
        self.down1, self.down2, self.down3 = Down(4, 8), Down(8, 12), Down(12, 16)
        self.up1, self.up2, self.up3 = Up(16, 12), Up(12, 8), Up(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = self.inc(x)
        b = self.down1(a)
        c = self.down2(b)
        return self.out(self.up3(self.up2(self.up1(self.down3(c), c), b), a))


def test_a_u_net_with_skip_connections():
    torch.manual_seed(0)
    net = UNet()
    assert len(check(net, images(16), "leaves").rows) == 28
    assert check(net, images(16), "blocks").rows == ("inc", "down1", "down2", "down3", "up1", "up2", "up3")


class Reader(nn.Module):
    """A recurrent network with a cell that runs once per step, and an LSTM that takes all steps at once."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(30, 8), nn.LSTM(8, 12, num_layers=2, batch_first=True, dropout=0.3)
        self.cell, self.head = nn.GRUCell(12, 6), nn.Linear(6, 3)

    def forward(self, tokens):
        outputs, _ = self.rnn(self.embed(tokens))
        state = None
        for step in outputs.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def test_recurrent_networks():
    torch.manual_seed(0)
    net, tokens = Reader(), torch.randint(0, 30, (10, 5), generator=torch.Generator().manual_seed(1))
    result = cp.compare(net, net, tokens, progress=False)
    assert result.rows == ("embed", "rnn", "cell", "cell#2", "cell#3", "cell#4", "cell#5", "head")
    assert_allclose(result.values, reference_cka([cloned(net, tokens)]), atol=1e-6)
    assert net.training
