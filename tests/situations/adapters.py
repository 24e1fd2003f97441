"""A small Llama with adapters of PEFT, for the situations with adapted networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from situation import needs
from texts import SIZES

__all__ = ["PEFT_AND_TRANSFORMERS", "adapted_llama", "lora_llama"]

PEFT_AND_TRANSFORMERS = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:`past_key_values`:FutureWarning"
)
"""PEFT 0.21 uses two names that transformers 5.24 has changed; neither of them is ours to mend."""


def adapted_llama(kind: str, **settings: Any) -> tuple[Any, Any]:
    """A Llama, and a copy of it adapted by ``peft.<kind>(**settings)``."""
    transformers, peft = needs("transformers", "hf"), needs("peft")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2)
    base = transformers.LlamaForCausalLM(config)
    return base, peft.get_peft_model(copy.deepcopy(base), getattr(peft, kind)(**settings))


def lora_llama() -> tuple[Any, Any]:
    """A Llama, and a copy with LoRA on two projections that changes its output, as after training."""
    base, adapted = adapted_llama("LoraConfig", r=2, target_modules=["q_proj", "v_proj"])
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return base, adapted
