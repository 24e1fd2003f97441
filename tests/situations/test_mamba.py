"""Mamba, a state-space model, in the pure torch path: its scan uses the weights of layers without calling them."""

import torch
from situation import check, check_notes, needs
from texts import over_tokens, sentences

import cka_probe as cp


def test_the_blocks_and_leaves_of_mamba():
    transformers = needs("transformers", "hf")
    sizes = {"vocab_size": 90, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2}
    torch.manual_seed(0)
    x, y = (transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, use_cache=False)) for _ in range(2))
    batches = sentences()
    result = cp.compare(x, y, batches, progress=False)
    assert "backbone.layers.0.mixer.x_proj" in result.rows
    check(result, x, batches, y, features=over_tokens())
    check_notes(result, r"model_x.*mixer\.conv1d.*left out", r"model_y.*mixer\.conv1d.*left out")
