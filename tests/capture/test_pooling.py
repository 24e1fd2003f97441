"""Every pooling against its definition; padding must not change the values."""

import numpy as np
import pytest
import torch
from activations import reference_cka
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.capture.pooling import POOLINGS, check_pooling, pool


@pytest.fixture
def tokens():
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    return torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


REAL = [[0, 1, 2], [0], [0, 1, 2, 3]]
"""The same mask, as the real tokens of each sample."""


def test_maps():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(pool(maps, "flatten"), maps.reshape(2, 60))
    assert_allclose(pool(maps, "mean"), maps.mean((2, 3)), atol=1e-7)
    positions = [maps[n, :, h, w] for n in range(2) for h in range(4) for w in range(5)]
    assert torch.equal(pool(maps, "spatial"), torch.stack(positions))
    assert torch.equal(pool(maps, "all"), pool(maps, "spatial"))
    assert torch.equal(pool(maps, "auto"), pool(maps, "flatten"))


def test_volumes():
    volumes = torch.randn(2, 3, 4, 5, 2)
    assert_allclose(pool(volumes, "mean"), volumes.mean((2, 3, 4)), atol=1e-7)
    assert pool(volumes, "spatial").shape == (2 * 40, 3)


def test_square_maps_with_channels_last_are_recognised():
    """Swin has maps (n, h, w, c). A mean over axes 2 and 3 would mix columns with channels."""
    maps = torch.randn(2, 4, 4, 6)
    assert_allclose(pool(maps, "mean"), maps.mean((1, 2)), atol=1e-7)
    assert torch.equal(pool(maps, "spatial"), maps.reshape(32, 6))


def test_square_maps_with_channels_first_are_not_changed():
    for shape in ((2, 6, 4, 4), (2, 4, 4, 4)):
        maps = torch.randn(*shape)
        assert_allclose(pool(maps, "mean"), maps.mean((2, 3)), atol=1e-7)


def test_tokens_without_a_mask(tokens):
    assert torch.equal(pool(tokens, "flatten"), tokens.reshape(3, 20))
    assert_allclose(pool(tokens, "mean"), tokens.mean(1), atol=1e-7)
    assert torch.equal(pool(tokens, "cls"), tokens[:, 0])
    assert torch.equal(pool(tokens, "last"), tokens[:, 3])
    assert torch.equal(pool(tokens, "all"), tokens.reshape(12, 5))
    assert torch.equal(pool(tokens, "spatial"), tokens.reshape(12, 5))
    assert torch.equal(pool(tokens, "auto"), pool(tokens, "flatten"))


def test_tokens_with_a_mask(tokens, mask):
    mean = torch.stack([tokens[i, real].mean(0) for i, real in enumerate(REAL)])
    assert_allclose(pool(tokens, "mean", mask), mean, atol=1e-7)
    assert_allclose(pool(tokens, "auto", mask), mean, atol=1e-7)
    assert torch.equal(pool(tokens, "last", mask), torch.stack([tokens[i, real[-1]] for i, real in enumerate(REAL)]))
    assert torch.equal(pool(tokens, "cls", mask), tokens[:, 0])
    assert torch.equal(pool(tokens, "all", mask), torch.cat([tokens[i, real] for i, real in enumerate(REAL)]))
    flat = tokens.clone()
    flat[0, 3], flat[1, 1:] = 0, 0
    assert torch.equal(pool(tokens, "flatten", mask), flat.reshape(3, 20))


def test_padding_on_the_left(tokens, mask):
    left, real = mask.flip(1), [[1, 2, 3], [3], [0, 1, 2, 3]]
    assert torch.equal(pool(tokens, "cls", left), torch.stack([tokens[i, r[0]] for i, r in enumerate(real)]))
    assert torch.equal(pool(tokens, "last", left), torch.stack([tokens[i, r[-1]] for i, r in enumerate(real)]))
    mean = torch.stack([tokens[i, r].mean(0) for i, r in enumerate(real)])
    assert_allclose(pool(tokens, "mean", left), mean, atol=1e-7)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "all", "flatten"])
def test_all_heads_of_a_token_are_its_features(pooling, tokens, mask):
    heads = torch.randn(3, 4, 2, 6)
    assert torch.equal(pool(heads, pooling, mask), pool(heads.reshape(3, 4, 12), pooling, mask))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "all", "flatten", "auto"])
def test_the_values_of_padding_do_not_matter(pooling, tokens, mask):
    spoilt = tokens.clone()
    for value in (float("nan"), float("inf"), 1e30):
        spoilt[mask == 0] = value
        assert torch.equal(pool(spoilt, pooling, mask), pool(tokens, pooling, mask))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_sample_without_real_tokens_has_no_features(pooling, tokens, mask):
    mask[1] = 0
    assert torch.isnan(pool(tokens, pooling, mask)[1]).all()
    assert not torch.isnan(pool(tokens, pooling, mask)[[0, 2]]).any()


def test_a_mask_of_other_tokens_is_not_applied(tokens):
    mask = torch.zeros(3, 7)
    assert torch.equal(pool(tokens, "auto", mask), pool(tokens, "flatten"))


def test_the_mean_of_equal_tokens_is_that_token_for_any_number_of_tokens(mask):
    """Sums of 3 and of 4 times 0.1 round differently, so that the layer would no longer be constant."""
    constant = torch.full((3, 4, 2), 0.1)
    assert torch.equal(pool(constant, "mean", mask), torch.full((3, 2), 0.1))


@pytest.mark.parametrize("pooling", ["flatten", "mean", "cls", "last", "all", "spatial", "auto"])
def test_matrices_are_features_already(pooling):
    x = torch.randn(4, 3)
    assert torch.equal(pool(x, pooling), x)


@pytest.mark.parametrize("pooling", ["flatten", "mean", "auto"])
def test_one_number_for_each_sample_is_one_column(pooling):
    assert pool(torch.arange(4.0), pooling).shape == (4, 1)


@pytest.mark.parametrize("shape", [(4, 100, 3), (4, 3, 10, 10)])
def test_means_of_half_precision_are_in_float32(shape):
    x = (torch.randn(shape) + 20).to(torch.bfloat16)
    axes = 1 if len(shape) == 3 else (2, 3)
    assert_allclose(pool(x, "mean").double(), x.double().mean(axes), rtol=1e-6)


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "last", "all", "spatial"])
def test_one_number_for_each_sample_has_no_positions(pooling):
    with pytest.raises(ValueError, match=rf"pooling '{pooling}' needs an activation with positions, got \(4,\)"):
        pool(torch.arange(4.0), pooling)


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_a_map_has_no_tokens(pooling):
    with pytest.raises(ValueError, match=rf"pooling '{pooling}' is for tokens .*, got a map of shape \(2, 3, 4, 4\)"):
        pool(torch.zeros(2, 3, 4, 4), pooling)


def test_the_error_for_an_unknown_pooling_lists_all_names():
    with pytest.raises(ValueError, match=r"`pooling` must be a function or one of 'auto', .*'last', got 'max'"):
        check_pooling("max")
    for name in POOLINGS:
        check_pooling(name)


def test_a_pooling_of_the_wrong_type():
    with pytest.raises(TypeError, match="`pooling` must be a name or a function of the activation, got int"):
        check_pooling(3)


@pytest.mark.parametrize(
    ("function", "what"), [(lambda x: x, r"\(2, 3, 4, 4\)"), (lambda x: x.flatten(1).numpy(), "ndarray")]
)
def test_a_function_must_return_a_matrix(function, what):
    with pytest.raises(ValueError, match=rf"the pooling function must return a tensor of shape \(n, d\), got {what}"):
        pool(torch.zeros(2, 3, 4, 4), function)


# --- in a comparison ----------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A small transformer without positions whose heads are an axis of their own, as in Qwen and Gemma."""

    def __init__(self, *, heads_first):
        super().__init__()
        torch.manual_seed(0)
        self.heads_first = heads_first
        self.embed, self.norm, self.out = nn.Embedding(20, 8), nn.LayerNorm(4), nn.Linear(8, 8)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        heads = x.view(*x.shape[:2], 2, 4)
        heads = self.norm(heads.transpose(1, 2)).transpose(1, 2) if self.heads_first else self.norm(heads)
        return self.out(x + heads.flatten(2))


def token_batches(lengths, *, extra=0, left=False):
    generator = torch.Generator().manual_seed(3)
    batches = []
    for sizes in lengths:
        t = max(sizes) + extra
        ids, mask = torch.zeros(len(sizes), t, dtype=torch.long), torch.zeros(len(sizes), t, dtype=torch.long)
        for row, size in enumerate(sizes):
            place = slice(t - size, t) if left else slice(0, size)
            ids[row, place] = torch.randint(1, 20, (size,), generator=generator)
            mask[row, place] = 1
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(len(sizes))})
    return batches


LENGTHS = [[5, 3, 4, 1, 2, 5, 3], [6, 2, 2, 3, 6, 1, 4, 5]]


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("pooling", ["auto", "mean", "cls", "last", "all"])
def test_padding_does_not_change_the_values(heads_first, pooling):
    net = Tokens(heads_first=heads_first)
    results = [
        cp.compare(net, net, token_batches(LENGTHS, **how), pooling=pooling, progress=False)
        for how in ({}, {"extra": 4}, {"left": True}, {"left": True, "extra": 3})
    ]
    for result in results[1:]:
        assert result.rows == ("embed", "norm", "out")
        assert_allclose(result.values, results[0].values, atol=1e-6)


def test_the_mean_over_real_tokens_against_the_definition():
    net = Tokens(heads_first=False)
    oracle = []
    for batch in token_batches(LENGTHS):
        with torch.no_grad():
            x = net.embed(batch["input_ids"])
            out = net(batch["input_ids"], None)
        real = batch["attention_mask"].bool()
        oracle.append(
            {
                name: np.stack([rows[keep].double().mean(0).numpy() for rows, keep in zip(values, real, strict=True)])
                for name, values in (("embed", x), ("out", out))
            }
        )
    result = cp.compare(net, net, token_batches(LENGTHS), layers=["embed", "out"], progress=False)
    assert_allclose(result.values, reference_cka(oracle), atol=1e-6)


def test_a_length_equal_to_the_number_of_heads_changes_nothing():
    """(n, heads, t, d) with heads = t = 2 in the second batch: the axis of the tokens is that of the first batch."""
    net = Tokens(heads_first=True)
    lengths = [LENGTHS[0], [2, 1, 2, 2, 1, 2]]
    results = [
        cp.compare(net, net, token_batches(lengths, extra=extra), progress=False).values for extra in (0, 5)
    ]  # with 5 more tokens the two differ
    assert_allclose(results[0], results[1], atol=1e-6)


def test_tokens_that_move_to_another_axis_are_an_error():
    class Moves(nn.Module):
        def forward(self, input_ids, attention_mask):
            x = input_ids[:, :, None].float() * torch.ones(3)
            return self.inner(x if x.shape[1] == 5 else x.transpose(1, 2).contiguous())

        def __init__(self):
            super().__init__()
            self.inner = nn.Tanh()

    with pytest.raises(
        cp.CaptureError,
        match=r"'inner' of .* cannot be .* in batch 1: .* shape \(8, 3, 6\), whose axis 1 no longer holds",
    ):
        cp.compare(Moves(), Moves(), token_batches(LENGTHS), layers="inner", progress=False)


def test_the_error_for_a_sample_without_real_tokens_names_it():
    batches = token_batches(LENGTHS)
    batches[1]["attention_mask"][2] = 0
    net = Tokens(heads_first=False)
    with pytest.raises(cp.CaptureError, match=r"Sample 2 of batch 1 has no real token in its attention mask\."):
        cp.compare(net, net, batches, progress=False)


def test_layers_of_different_resolution_cannot_share_positions():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    with pytest.raises(
        cp.CaptureError,
        match=r"with pooling 'spatial' the layers differ in their number of positions \('1' has 24, '0' has 96\)",
    ):
        cp.compare(net, net, torch.randn(6, 3, 6, 6), pooling="spatial", progress=False)


def test_positions_as_samples():
    net, batch = nn.Conv2d(3, 4, 3), torch.randn(5, 3, 6, 6)
    result = cp.compare(net, net, batch, layers="", pooling="spatial", progress=False)
    assert result.meta["samples"] == 5 * 16


# --- a function ---------------------------------------------------------------------------------------------------


def windows(activation):
    """One row for each image from its windows, which Swin puts on axis 0."""
    return activation.reshape(8, -1)


class Windowed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(6, 9), nn.Linear(24, 5)

    def forward(self, x):
        per_window = self.qkv(x.reshape(len(x) * 4, 6))
        return self.head(x) + per_window.reshape(len(x), -1).sum(1, keepdim=True)


def test_windows_on_the_sample_axis_are_left_out_with_a_note_and_a_function_can_join_them():
    net, batch = Windowed(), torch.randn(8, 24)
    plain = cp.compare(net, net, batch, progress=False)
    assert plain.rows == ("head",)
    assert plain.notes == (
        "model_x (Windowed): 'qkv' was left out: its output has shape (32, 9), so axis 0 does not hold the 8 samples "
        "of the batch",
    )
    folded = cp.compare(net, net, batch, pooling=windows, progress=False)
    with torch.no_grad():
        features = {"qkv": net.qkv(batch.reshape(32, 6)).reshape(8, 36).double().numpy(), "head": None}
        features["head"] = net.head(batch).double().numpy()
    assert folded.rows == ("qkv", "head")
    assert_allclose(folded.values, reference_cka([features]), atol=1e-6)
    assert folded.meta["pooling"] == "windows"


def test_a_layer_is_left_out_if_the_function_returns_other_rows_than_samples():
    net = Windowed()
    result = cp.compare(net, net, torch.randn(8, 24), pooling=lambda x: x.flatten(1), progress=False)
    assert result.rows == ("head",)
    with pytest.raises(
        cp.CaptureError, match=r"Layer 'qkv' of model_x \(Windowed\) cannot be compared: its output has"
    ):
        cp.compare(net, net, torch.randn(8, 24), layers="qkv", pooling=lambda x: x.flatten(1), progress=False)


def test_the_error_of_a_function_names_the_layer():
    net = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(
        cp.CaptureError, match=r"Layer '0' of model_x .*: the pooling function failed on .* shape \(6, 3\): .*permute"
    ):
        cp.compare(net, net, torch.randn(6, 4), pooling=lambda x: x.permute(0, 2, 1), progress=False)


# --- the mean over real tokens as a product with the mask -------------------------------------------------------------


def lengths_mask(n, t):
    lengths = torch.arange(n) % t + 1
    return torch.arange(t)[None] < lengths[:, None]


def exact_mean(tokens, real):
    return torch.stack([one[mask].double().mean(0) for one, mask in zip(tokens, real, strict=True)])


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_mean_by_product_gives_the_gram_matrix_of_float64(offset, dtype):
    torch.manual_seed(0)
    tokens, real = torch.randn(32, 12, 40).to(dtype) + offset, lengths_mask(32, 12)
    expected = exact_mean(tokens, real)
    found = pool(tokens, "mean", real, by_product=True).double()
    careful = pool(tokens, "mean", real).double()
    expected, found, careful = (x - x.mean(0) for x in (expected, found, careful))
    error, usual = ((x @ x.T - expected @ expected.T).norm() / (expected @ expected.T).norm() for x in (found, careful))
    assert error < max(2e-7, 1.01 * float(usual))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_padding_that_is_not_finite_does_not_count_in_a_product(value):
    torch.manual_seed(0)
    tokens, real = torch.randn(8, 5, 6), lengths_mask(8, 5)
    expected = exact_mean(tokens, real).float()
    tokens = tokens.masked_fill(~real[:, :, None], value)
    torch.testing.assert_close(pool(tokens, "mean", real, by_product=True), expected)


def test_equal_samples_of_different_lengths_stay_equal_and_a_sample_without_tokens_is_nan():
    real = lengths_mask(8, 7)
    constant = (torch.full((8, 7, 6), 0.1) * torch.linspace(0.3, 7, 6)).contiguous()
    found = pool(constant, "mean", real, by_product=True)
    assert torch.equal(found, found[:1].expand_as(found))
    real[3] = False
    found = pool(torch.randn(8, 7, 6), "mean", real, by_product=True)
    assert found[3].isnan().all()
    assert found[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()
