"""Notes on the parts and keys of a batch that a model is not given; none for what is plainly a target."""

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.dropped import notes_on_dropped

N, T, D = 8, 5, 4


class Takes(nn.Module):
    """A model whose forward has the arguments of ``signature``."""

    def __new__(cls, signature):
        scope = {}
        exec(f"def forward(self, {signature}): pass", scope)
        made = nn.Module.__new__(type("Net", (nn.Module,), {"forward": scope["forward"]}))
        nn.Module.__init__(made)
        return made


def notes(signature, batch):
    return notes_on_dropped("x (Net)", Takes(signature), batch)


def ids():
    return torch.randint(2, 90, (N, T), generator=torch.Generator().manual_seed(0))


def token_mask(kind=torch.int64):
    return (torch.arange(T) < torch.tensor([5, 3, 4, 5, 2, 1, 5, 4])[:, None]).to(kind)


IMAGES = torch.zeros(N, 3, 6, 6)
ONE_HOT = torch.eye(T)[torch.arange(N) % T]


@pytest.mark.parametrize(
    ("signature", "batch"),
    [
        ("x", IMAGES),
        ("x", (IMAGES, torch.arange(N))),
        ("x", (IMAGES, torch.randn(N))),
        ("x", (IMAGES, torch.randn(N, 1))),
        ("x", (IMAGES, torch.eye(10)[torch.arange(N)])),
        ("x", (IMAGES, torch.rand(N, 10).softmax(1))),
        ("x", (IMAGES, torch.randint(2, (N, 14)))),
        ("x", (IMAGES, torch.randint(2, (N, 6, 6)))),
        ("x", (IMAGES, torch.randint(2, (N, 1, 6, 6)).float())),
        ("x, attn_mask=None", (IMAGES, torch.randint(2, (N, 1, 6, 6)).bool())),
        ("x, attn_mask=None, is_causal=False", (IMAGES, torch.randn(N, 3))),
        ("x", (IMAGES, [{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3)}] * N)),
        ("x", (IMAGES, ["a"] * N)),
        ("x", (IMAGES, torch.arange(N), ["path"] * N)),
        ("x", (torch.randn(N, T), ONE_HOT)),
        ("x", (torch.randn(N, T), torch.randn(N, T))),
        ("idx, targets=None", (ids(), ids())),
        ("x, hx=None", (torch.randn(N, T, D), torch.randn(N, 3))),
        ("pixel_values=None, labels=None", {"pixel_values": IMAGES, "labels": torch.arange(N), "idx": torch.arange(N)}),
        ("image", {"image": IMAGES, "mask": torch.randint(2, (N, 6, 6)), "path": ["a"] * N}),
        ("image", {"image": IMAGES, "target": torch.randn(N, 7), "class_labels": torch.randn(N, 3), "y": ids()}),
        ("image", {"image": IMAGES, "age": torch.randn(N), "scale": torch.tensor(3.0)}),
        ("input_ids, attention_mask=None", {"input_ids": ids(), "attention_mask": token_mask()}),
        ("input_ids", {"input_ids": ids(), "token_type_ids": torch.zeros(N, T)}),
        (
            "input_ids",
            {"input_ids": ids(), "special_tokens_mask": token_mask(), "offset_mapping": torch.zeros(N, T, 2)},
        ),
        ("**inputs", {"input_ids": ids(), "attention_mask": token_mask(), "labels": ids()}),
        ("x, t", ((torch.randn(N, D), torch.randn(N)), torch.randn(N, D))),
        ("x", nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])),
    ],
)
def test_no_note_on_what_is_plainly_a_target(signature, batch):
    assert notes(signature, batch) == []


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("rest", [(), (torch.arange(N),)], ids=["no target", "a target"])
@pytest.mark.parametrize("inputs", [ids(), torch.randn(N, T, D)], ids=["ids", "embeddings"])
def test_a_part_that_looks_like_a_mask(kind, rest, inputs):
    (note,) = notes("tokens, src_key_padding_mask=None", (inputs, token_mask(kind), *rest))
    assert note.startswith(
        f"x (Net) was given only the first of the {2 + len(rest)} parts of each batch, and not part 2"
    )
    assert "of shape (8, 5), which looks like a mask" in note
    assert "The forward has 'src_key_padding_mask'" in note
    (note,) = notes("tokens", (inputs, token_mask(kind), *rest))
    for name in ("'mask'", "'padding_mask'", "'src_key_padding_mask'", "'attention_mask'"):
        assert name in note


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(N, T).masked_fill(~token_mask(torch.bool), -torch.inf),
        token_mask()[:, None, None].expand(N, 1, T, T),
        torch.ones(N, T),
    ],
    ids=["additive", "of pairs", "without padding in the first batch"],
)
def test_other_forms_of_masks(mask):
    (note,) = notes("x", (ids(), mask))
    assert "looks like a mask" in note


@pytest.mark.parametrize(
    ("signature", "batch", "part"),
    [
        ("x, cond=None", (torch.randn(N, D), torch.randn(N, 3)), "part 2, of shape (8, 3)"),
        ("input_ids, pixel_values=None", (ids(), IMAGES), "part 2, of shape (8, 3, 6, 6)"),
        ("x, lengths=None", (ids(), torch.arange(N)), "part 2, of shape (8,)"),
        ("x, mask=None", (IMAGES, torch.randint(2, (N, 1, 6, 6))), "part 2, of shape (8, 1, 6, 6)"),
        ("x", (IMAGES, IMAGES, torch.arange(N)), "part 2, of shape (8, 3, 6, 6)"),
        ("x", (IMAGES, torch.arange(N), torch.arange(N)), "part 3, of shape (8,)"),
    ],
)
def test_a_part_that_is_no_target(signature, batch, part):
    (note,) = notes(signature, batch)
    assert f"was given only the first of the {len(batch)} parts of each batch, and not {part}" in note
    assert "forward=" in note


@pytest.mark.parametrize("key", ["mask", "padding_mask", "src_key_padding_mask", "attention_mask", "pad_mask"])
def test_a_mask_under_a_name_that_the_forward_does_not_have(key):
    (note,) = notes("x, key_padding_mask=None", {"x": ids(), key: token_mask(), "labels": torch.arange(N)})
    assert note.startswith(f"x (Net) was not given {key!r} of the batch: its forward has no argument of this name. ")
    assert "The forward has 'key_padding_mask'" in note
    read = key in ("attention_mask", "src_key_padding_mask")
    assert ("; the pooling reads 'attention_mask' (1 is real) and 'src_key_padding_mask'" in note) == (not read)
    assert ("Without it the network takes padded tokens" in note) == read


@pytest.mark.parametrize(
    ("signature", "batch", "keys"),
    [
        ("image", {"image": IMAGES, "depth": torch.randn(N, 1, 6, 6)}, "'depth'"),
        ("input_ids", {"input_ids": ids(), "token_type_ids": token_mask()}, "'token_type_ids'"),
        ("x", {"x": ids(), "lengths": torch.arange(N), "extra": torch.randn(N, 2)}, "'lengths', 'extra'"),
        ("image, mask=None", {"image": IMAGES, "pixel_mask": torch.ones(N, 6, 6)}, "'pixel_mask'"),
        ("x, t=None", ({"x": IMAGES, "timestep": torch.rand(N)}, torch.arange(N)), "'timestep'"),
    ],
)
def test_other_keys_that_the_forward_does_not_take(signature, batch, keys):
    (note,) = notes(signature, batch)
    assert note.startswith(f"x (Net) was not given {keys} of the batch")


def test_a_mask_that_would_vanish_among_any_keywords():
    batch = {"input_ids": ids(), "mask": token_mask()}
    (note,) = notes("input_ids, attention_mask=None, **kwargs", batch)
    assert note.startswith("x (Net) was not given 'mask' of the batch: its forward has no argument of this name. ")
    assert notes("input_ids, attention_mask=None, **kwargs", {**batch, "attention_mask": token_mask()}) == []
    assert notes("input_ids, **kwargs", batch) == []


def test_nested_parts():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    assert notes("x", (torch.ones(2, 5), nested)) == []
    (note,) = notes("x", (nested, torch.ones(2), nested))
    assert "and not part 3, of shape nested, of 2 samples" in note
    (note,) = notes("x", {"x": torch.ones(2, 5), "more": nested})
    assert "was not given 'more'" in note


def test_the_notes_are_in_the_result_once_for_each_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(90, 6), nn.Linear(6, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    batches = [(ids(), token_mask()) for _ in range(3)]
    x, y = Net(), Net()
    for scope in ("minibatch", "dataset"):
        result = cp.compare(x, y, batches, scope=scope, progress=False)
        found = [note for note in result.notes if "looks like a mask" in note]
        assert [note.split()[0] for note in found] == ["model_x", "model_y"]
    assert any("looks like a mask" in note for note in cp.extract(x, batches, progress=False).notes)
    assert any("looks like a mask" in note for note in cp.signature(x, batches, progress=False).notes)
