"""A network is run as the user says, and the mask of its tokens is found however it is passed."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

from cka_probe.distill.taps.running import own_inputs, run_network
from cka_probe.distill.taps.stages import match_stages
from cka_probe.distill.taps.tapped_model import TappedModel

IDS = torch.arange(1, 25).reshape(4, 6)
MASK = (torch.arange(6) < torch.tensor([[6], [3], [5], [4]])).long()
WORDS = {"input_ids": IDS, "attention_mask": MASK}


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=30, **sizes)).eval()


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x, src_key_padding_mask=None):
        return self.layer(x, src_key_padding_mask=src_key_padding_mask)


def outputs_of(model, inputs, layers=(), role="student", forward=None):
    with TappedModel(model, layers, role, forward) as tapped, torch.no_grad():
        return tapped(inputs)


@pytest.mark.parametrize(
    ("inputs", "forward"),
    [
        (WORDS, None),
        ((IDS, MASK), None),
        ([IDS, MASK], None),
        ((IDS, MASK), lambda model, pair: model(pair[0], pair[1])),
        ({"words": IDS, "real": MASK}, lambda model, batch: model(batch["words"], attention_mask=batch["real"])),
        ({"student": WORDS, "teacher": {"input_ids": IDS}}, None),
    ],
)
def test_the_mask_is_found_however_it_is_passed(inputs, forward):
    model = bert()
    outputs = outputs_of(model, inputs, ["encoder.layer.1"], forward=forward)
    assert torch.equal(outputs.mask, MASK)
    with torch.no_grad():
        assert torch.equal(outputs.features[0], model(**WORDS).last_hidden_state)
    assert not model._forward_pre_hooks


def test_masks_of_torchs_transformers_are_turned_round():
    x, model = torch.randn(4, 6, 8), Encoder().eval()
    for inputs in ((x, MASK == 0), {"x": x, "src_key_padding_mask": MASK == 0}):
        assert torch.equal(outputs_of(model, inputs).mask, MASK == 1)
    added = torch.zeros(4, 6).masked_fill(MASK == 0, -torch.inf)
    assert torch.equal(outputs_of(model, {"x": x, "src_key_padding_mask": added}).mask, MASK == 1)
    assert outputs_of(model, {"x": x}).mask is None
    assert outputs_of(model, x).mask is None


def test_layers_of_a_decoder_have_the_mask_of_the_decoder():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 30}
    model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    batch = {**WORDS, "decoder_input_ids": IDS[:, :5], "decoder_attention_mask": MASK[:, :5]}
    assert torch.equal(outputs_of(model, batch, ["encoder.block.1"]).mask, MASK)
    for layers in (["decoder.block.1"], []):  # the logits are the decoder's
        assert torch.equal(outputs_of(model, batch, layers).mask, MASK[:, :5])
    del batch["decoder_attention_mask"]
    assert outputs_of(model, batch, ["decoder.block.1"]).mask is None
    with pytest.raises(ValueError, match="encoder and of the decoder of the student are tapped"):
        outputs_of(model, batch, ["decoder.block.1", "encoder.block.1"])


def test_a_decoder_alone_has_the_attention_mask():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    model = OPTForCausalLM(OPTConfig(vocab_size=30, word_embed_proj_dim=16, **sizes)).eval()
    assert torch.equal(outputs_of(model, WORDS, ["model.decoder.layers.1"]).mask, MASK)


def test_several_inputs_are_several_arguments_only_where_the_network_takes_them():
    class Two(nn.Module):
        def forward(self, left, right):
            return left - right

    class List(nn.Module):
        def forward(self, pair):
            return pair[0] - pair[1]

    for model in (Two(), List()):
        output, _ = run_network(model, [torch.full((4, 2), 5.0), torch.ones(4, 2)])
        assert torch.equal(output, torch.full((4, 2), 4.0))


def test_inputs_that_a_network_does_not_take_get_a_remedy():
    with pytest.raises(TypeError, match=r'Linear does not take a list of 2 inputs \(linear.*forward=\{"student": '):
        run_network(nn.Linear(2, 2), [torch.zeros(4, 2), torch.zeros(4, 2)])


def test_only_a_dict_of_both_networks_is_divided():
    both = {"student": 1, "teacher": 2}
    assert own_inputs(both, "student") == 1
    assert own_inputs(both, "teacher") == 2
    assert own_inputs(both, "model") is both
    assert own_inputs({"student": 1}, "student") == {"student": 1}


def test_the_logits_of_a_dict_are_those_with_this_name():
    class Named(nn.Module):
        def forward(self, x):
            return {"features": x, "logits": 2 * x}

    assert torch.equal(outputs_of(Named(), torch.ones(4, 2)).logits, torch.full((4, 2), 2.0))


def test_a_layer_that_is_named_twice_comes_twice():
    outputs = outputs_of(bert(), WORDS, ["encoder.layer.1", "encoder.layer.0", "encoder.layer.1"])
    assert len(outputs.features) == 3
    assert torch.equal(outputs.features[0], outputs.features[2])


def test_stages_are_found_with_inputs_of_their_own():
    small, large = (nn.Sequential(*[nn.Linear(width, width) for _ in range(3)]) for width in (2, 3))
    inputs = (torch.zeros(4, 2), torch.zeros(4, 3))
    ways = {"student": lambda model, pair: model(pair[0]), "teacher": lambda model, pair: model(pair[1])}
    expected = (["0", "1"], ["0", "1"])
    assert match_stages(small, large, inputs, ways) == expected
    assert match_stages(small, large, {"student": inputs[0], "teacher": inputs[1]}) == expected
    assert match_stages(small, small, (inputs[0], torch.zeros(4))) == expected  # a pair (input, target)


def test_an_error_without_a_message_is_named_too():
    class Silent(torch.nn.Module):
        def forward(self, x):
            raise TypeError

    with pytest.raises(TypeError, match=r"does not take a tuple of 2 inputs \(TypeError\)"):
        run_network(Silent(), (torch.zeros(2), torch.zeros(2)))
