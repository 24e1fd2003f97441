"""A reward model of RLHF against its policy: a decoder whose head gives one number for each token."""

import torch
from situation import check, check_notes, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def test_a_scalar_head_against_the_policy():
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=1)
    reward, policy = transformers.LlamaForSequenceClassification(config), transformers.LlamaForCausalLM(config)
    batches = sentences()
    result = cp.compare(
        reward, policy, batches, layers=["model.layers.?", "score"], layers_y=["model.layers.?", "lm_head"],
        progress=False,
    )  # fmt: skip
    assert result.rows[-1] == "score"
    check(result, reward, batches, policy, features=over_tokens())
    check_notes(result)


def test_the_rewards_themselves_are_a_layer():
    """A network that returns one number for each sample, of shape (n,)."""
    torch.manual_seed(0)

    class Reward(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 1)
            self.squeeze = torch.nn.Flatten(0)

        def forward(self, x):
            return self.squeeze(self.head(self.body(x).tanh()))

    net, batches = Reward(), [torch.randn(9, 6) for _ in range(2)]
    result = cp.compare(net, net, batches, progress=False)
    assert result.rows == ("body", "head", "squeeze")
    check(result, net, batches)
    check_notes(result)
