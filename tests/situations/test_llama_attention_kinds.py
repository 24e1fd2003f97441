"""Llama with both implementations of attention, "eager" and "sdpa": people compare them before they trust one."""

import numpy as np
import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def test_eager_and_sdpa_attention_agree():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    eager = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")
    sdpa = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    sdpa.load_state_dict(eager.state_dict())
    batches = sentences(left=True)
    result = cp.compare(eager, sdpa, batches, progress=False)
    check(result, eager, batches, sdpa, features=over_tokens())
    np.testing.assert_allclose(np.diag(result.values), 1, atol=1e-5)
    check_notes(result, r"eager|model_x.*rotary_emb", r"sdpa|model_y.*rotary_emb")
