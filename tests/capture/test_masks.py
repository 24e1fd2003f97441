"""A mask is used where it belongs: source and target, words and patches, heads and tokens of one length."""

import warnings

import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp


def real_tokens(n, t, seed):
    """Mask (n, t) of samples of 1 to t tokens."""
    lengths = torch.randint(1, t + 1, (n,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = t
    return (torch.arange(t)[None] < lengths[:, None]).long()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_mean(x, mask, axis=1):
    """Mean over the real tokens of each sample, of an activation with its tokens on ``axis``."""
    x = x.movedim(axis, 1).reshape(x.shape[0], x.shape[axis], -1)
    return torch.stack([rows[keep].mean(0) for rows, keep in zip(x, mask.bool(), strict=True)])


def oracle(net, batches, rows, key_and_axis):
    """CKA of the rows; ``key_and_axis`` maps a row to its mask and token axis, all others are flattened."""
    found = []
    for batch in batches:
        features = {}
        for row in rows:
            key, axis = key_and_axis.get(row, (None, 1))
            features |= cloned(
                net,
                batch,
                lambda name, _m, row=row: name == row,
                run=lambda model, b: model(**b),
                features=lambda x, key=key, axis=axis, batch=batch: (
                    x.flatten(1) if key is None else token_mean(x, batch[key], axis)
                ),
            )
        found.append(features)
    return reference_cka(found)


class TwoStacks(nn.Module):
    """An encoder and a decoder whose names say nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.keys, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None):
        source = self.one(input_ids).tanh()
        target = self.two(decoder_input_ids).tanh()
        weights = (target @ self.keys(source).transpose(1, 2)).softmax(-1)
        return self.out(target + weights @ source)


def pairs(*, both=True):
    found = []
    for seed in range(3):
        batch = {
            "input_ids": numbers(8, 6, 4, seed=seed),
            "decoder_input_ids": numbers(8, 6, 4, seed=seed + 10),
            "attention_mask": real_tokens(8, 6, seed + 20),
        }
        if both:
            batch["decoder_attention_mask"] = real_tokens(8, 6, seed + 30)
        found.append(batch)
    return found


def test_source_and_target_of_one_length_have_their_own_masks():
    net, batches = TwoStacks(), pairs()
    result = cp.compare(net, net, batches, progress=False)
    source, target = ("attention_mask", 1), ("decoder_attention_mask", 1)
    masks = {"one": source, "keys": source, "two": target, "out": target}
    assert_allclose(result.values, oracle(net, batches, result.rows, masks), atol=1e-6)
    assert not result.notes


def test_a_target_without_a_mask_is_pooled_without_one_and_a_note_says_so():
    net, batches = TwoStacks(), pairs(both=False)
    result = cp.compare(net, net, batches, progress=False)
    masks = {"one": ("attention_mask", 1), "keys": ("attention_mask", 1)}
    assert_allclose(result.values, oracle(net, batches, result.rows, masks), atol=1e-6)
    (note,) = result.notes
    assert note.startswith("model_x (TwoStacks): 'two', 'out' were pooled without a mask, because no axis")


class WordsAndPatches(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.words, self.patches, self.joint = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, input_ids, pixels, attention_mask):
        words, patches = self.words(input_ids), self.patches(pixels.flatten(2).transpose(1, 2))
        return self.joint(words.mean(1) + patches.mean(1))


def test_as_many_patches_as_words():
    net = WordsAndPatches()
    batches = [
        {
            "input_ids": numbers(7, 9, 4, seed=s),
            "pixels": numbers(7, 4, 3, 3, seed=s + 10),
            "attention_mask": real_tokens(7, 9, s + 20),
        }
        for s in range(2)
    ]
    result = cp.compare(net, net, batches, progress=False)
    assert_allclose(result.values, oracle(net, batches, result.rows, {"words": ("attention_mask", 1)}), atol=1e-6)
    (note,) = result.notes
    assert "'patches' was pooled without a mask" in note
    assert "words" not in note


class Heads(nn.Module):
    """Attention with heads on an axis of their own, and their maps (n, heads, t, t)."""

    def __init__(self, heads, width):
        super().__init__()
        torch.manual_seed(2)
        self.heads = heads
        self.project, self.split, self.maps = nn.Linear(4, heads * width), nn.Tanh(), nn.Softmax(-1)
        self.columns = nn.Conv1d(heads * width, 3, 1)

    def forward(self, x, attention_mask):
        x = self.project(x)
        heads = self.split(x.unflatten(2, (self.heads, -1)).transpose(1, 2))
        self.maps(heads @ heads.transpose(2, 3))
        return self.columns(x.transpose(1, 2))


@pytest.mark.parametrize(
    ("samples", "heads", "width", "tokens"),
    [(7, 6, 2, 6), (7, 2, 3, 6), (6, 3, 2, 6), (6, 6, 1, 6), (7, 2, 4, 4), (5, 3, 2, 3)],
)
def test_heads_width_or_samples_as_many_as_tokens(samples, heads, width, tokens):
    """Tokens on axis 1 of (n, t, d), on axis 2 of (n, h, t, d) and (n, h, t, t) and of (n, c, t), whatever is equal."""
    net = Heads(heads, width)
    batches = [
        {"x": numbers(samples, tokens, 4, seed=s), "attention_mask": real_tokens(samples, tokens, s)} for s in range(3)
    ]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("project", "split", "maps", "columns")
    axes = {"project": 1, "split": 2, "maps": 2, "columns": 2}
    masks = {row: ("attention_mask", axis) for row, axis in axes.items()}
    assert_allclose(result.values, oracle(net, batches, result.rows, masks), atol=2e-6)
    assert not result.notes


def test_one_batch_is_enough():
    net = Heads(4, 2)
    batch = {"x": numbers(9, 4, 4), "attention_mask": real_tokens(9, 4, 0)}
    result = cp.compare(net, net, batch, layers=["split"], progress=False)
    assert_allclose(result.values, oracle(net, [batch], ["split"], {"split": ("attention_mask", 2)}), atol=1e-6)


class Rigid(nn.Module):
    """Runs on 6 tokens only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.mix = nn.Linear(4, 5), nn.Linear(6, 6)

    def forward(self, x, attention_mask):
        return self.mix(self.embed(x).transpose(1, 2))


def test_a_model_that_takes_one_length_only_is_matched_by_length_and_a_note_says_so():
    net = Rigid()
    batches = [{"x": numbers(7, 6, 4, seed=s), "attention_mask": real_tokens(7, 6, s)} for s in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    masks = {"embed": ("attention_mask", 1), "mix": ("attention_mask", 2)}
    assert_allclose(result.values, oracle(net, batches, result.rows, masks), atol=1e-6)
    (note,) = result.notes
    assert note.startswith("model_x (Rigid): the attention_mask was matched to the layers by its length, because")


class Padded(nn.Module):
    """Pads its input to a multiple of 4 tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.embed = nn.Linear(4, 5)

    def forward(self, x, attention_mask):
        return self.embed(nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4)))


@pytest.mark.parametrize(("tokens", "fits"), [(8, True), (12, True), (6, False)])
def test_a_model_that_pads_its_input(tokens, fits):
    net = Padded()
    batches = [{"x": numbers(7, tokens, 4, seed=s), "attention_mask": real_tokens(7, tokens, s)} for s in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    masks = {"embed": ("attention_mask", 1)} if fits else {}
    assert_allclose(result.values, oracle(net, batches, result.rows, masks), atol=1e-6)
    assert len(result.notes) == (not fits)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, src, src_key_padding_mask):
        return self.head(self.embed(src))


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_padding_masks_of_torch_are_true_or_minus_infinity_at_padding(kind):
    net, batches, expected = Summed(), [], []
    for seed in range(2):
        mask = real_tokens(7, 6, seed)
        padding = mask == 0
        if kind.is_floating_point:
            padding = torch.zeros(7, 6).masked_fill(padding, -torch.inf)
        src = numbers(7, 6, 4, seed=seed)
        batches.append({"src": src, "src_key_padding_mask": padding})
        with torch.no_grad():
            embedded = net.double().embed(src.double())
            outputs = {"embed": embedded, "head": net.head(embedded)}
            expected.append({row: token_mean(x, mask).numpy() for row, x in outputs.items()})
        net.float()
    result = cp.compare(net, net, batches, progress=False)
    assert_allclose(result.values, reference_cka(expected), atol=1e-6)
    assert not result.notes


def test_a_mask_that_is_added_to_the_scores_is_zero_at_real_tokens():
    net = Heads(2, 3)
    masks = [real_tokens(7, 6, seed) for seed in range(2)]
    batches = [{"x": numbers(7, 6, 4, seed=s), "attention_mask": m} for s, m in enumerate(masks)]
    added = [
        {**batch, "attention_mask": torch.zeros(7, 6).masked_fill(batch["attention_mask"] == 0, -1e9)}
        for batch in batches
    ]
    results = [cp.compare(net, net, data, progress=False) for data in (batches, added)]
    assert_allclose(results[1].values, results[0].values, atol=1e-12)


class Noisy(nn.Module):
    """Counts its calls, keeps a state in a buffer that it replaces, and draws a random number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.embed, self.calls = nn.Linear(4, 5), 0
        self.register_buffer("state", torch.zeros(3))

    def forward(self, x, attention_mask):
        self.calls += 1
        self.state = self.state + 1
        self.last = x
        return self.embed(x + torch.rand(()))


def test_the_trial_leaves_no_trace():
    net = Noisy()
    batches = [{"x": numbers(7, 6, 4, seed=s), "attention_mask": real_tokens(7, 6, s)} for s in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cp.compare(net, net, batches, progress=False, pooling="mean")
    assert net.calls in (0, 2)  # the two batches, or nothing where the state of a network is given back
    assert net.state.tolist() in ([0.0] * 3, [2.0] * 3)
    assert getattr(net, "last", batches[1]["x"]).shape == (7, 6, 4)


def test_a_pooling_function_is_given_the_activation_without_a_trial():
    seen = []

    def forward(model, batch):
        seen.append(len(batch["x"]))
        return model(**batch)

    net = Rigid()
    data = [{"x": numbers(7, 6, 4, seed=s), "attention_mask": real_tokens(7, 6, s)} for s in range(2)]
    cp.compare(net, net, data, forward=forward, pooling=lambda x: x.flatten(1), progress=False)
    assert seen == [7, 7]
