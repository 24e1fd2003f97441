"""A training run that is compared in the middle goes on as if nothing had happened: the same losses, bit for bit."""

import copy

import pytest
import torch
from activations import cloned, reference_cka
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import cka_probe as cp
from cka_probe.comparison.history import SimilarityHistory

DATA = [torch.randn(16, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        if self.training or not self.use_reentrant:  # the old kind warns where no gradient is wanted
            return checkpoint(self.block, x, use_reentrant=self.use_reentrant)
        return self.block(x)


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        if not self.training and len(x) == 16:
            raise self.error
        return x


def plain():
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(6, 2))


def partly_frozen():
    net = plain()
    net[0].requires_grad_(False)
    net[1].eval()
    return net


def spectral():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Dropout(), nn.Linear(6, 2))


def checkpointed(use_reentrant):
    return nn.Sequential(nn.Linear(6, 6), Checkpointed(use_reentrant), nn.Linear(6, 2))


def losses(build, look, *, steps=6):
    """Losses of a run that calls ``look(net)`` between a forward and its backward, and after a step."""
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(torch.randn(48, 6), torch.randn(48, 2)), batch_size=8, shuffle=True)
    found = []
    for step, (x, y) in enumerate(loader):
        loss = (net(x) - y).square().mean()
        if step == 1:
            look(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 3:
            look(net)
        found.append(loss.item())
        if step + 1 == steps:
            break
    return found


def nothing(_net):
    pass


def loader():
    return DataLoader(torch.cat(DATA), batch_size=16, shuffle=True)


def by_compare(net):
    cp.compare(net, OTHER, loader(), progress=False)


def by_dataset_scope(net):
    cp.compare(net, net, DATA, scope="dataset", progress=False)


def by_compare_many(net):
    cp.compare_many({"a": net, "b": nn.DataParallel(net)}, DATA, progress=False)


def by_extract(net):
    cp.extract(net, loader(), progress=False)


def by_signature(net):
    cp.signature(net, DATA, progress=False)


def by_history(net):
    SimilarityHistory(net, DATA).measure(net, step=0)


def by_compiled(net):
    cp.compare(torch.compile(net, backend="eager"), net, DATA, progress=False)


OTHER = plain()
LOOKS = [by_compare, by_dataset_scope, by_compare_many, by_extract, by_signature, by_history, by_compiled]
BUILDS = {
    "plain": plain,
    "partly frozen": partly_frozen,
    "spectral norm": spectral,
    "checkpoint": lambda: checkpointed(use_reentrant=False),
    "reentrant checkpoint": lambda: checkpointed(use_reentrant=True),
}


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
@pytest.mark.parametrize("build", BUILDS)
def test_the_losses_are_those_of_a_run_without_a_comparison(build, look):
    assert losses(BUILDS[build], look) == losses(BUILDS[build], nothing)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=type)
def test_the_losses_are_the_same_after_a_comparison_that_failed_or_was_stopped(error):
    def build():
        return nn.Sequential(*plain(), Fails(error))

    def look(net):
        with pytest.raises(type(error)):
            cp.compare(net, net, loader(), progress=False)

    assert losses(build, look) == losses(build, nothing)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_transformer_with_gradient_checkpointing(reentrant):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=40, num_labels=2, max_position_embeddings=16, **sizes)
    first = transformers.BertForSequenceClassification(config)
    # Transformers 5 gave it another name.
    enable = getattr(first, "activation_checkpointing_enable", None) or first.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    first.enable_input_require_grads()
    tokens = torch.randint(0, 40, (8, 12))

    def run(look):
        net = copy.deepcopy(first).train()
        torch.manual_seed(1)
        optimizer, found = torch.optim.AdamW(net.parameters(), lr=1e-2), []
        for step in range(4):
            loss = net(tokens, labels=tokens[:, 0] % 2).loss
            if step % 2:
                look(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        assert any(vars(module).get("gradient_checkpointing") for module in net.modules())
        return found

    def look(net):
        cp.compare(net, net, [{"input_ids": tokens}], layers="blocks", progress=False)

    assert run(look) == run(nothing)


# --- callers in another mode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_callers_in_any_grad_mode_get_the_same_values_and_keep_their_mode(mode):
    torch.manual_seed(0)
    net = plain()
    expected = reference_cka([cloned(net, batch) for batch in DATA])
    net.train()
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = cp.compare(net, net, DATA, progress=False)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert_allclose(result.values, expected, atol=1e-6)
    net(DATA[0]).sum().backward()  # the weights are no inference tensors
    assert all(p.grad is not None for p in net.parameters())


def test_a_network_that_was_made_in_inference_mode():
    torch.manual_seed(0)
    with torch.inference_mode():
        net = plain()
    expected = reference_cka([cloned(net, batch) for batch in DATA])
    for caller in (torch.enable_grad, torch.inference_mode):
        with caller():
            assert_allclose(cp.compare(net, net, DATA, progress=False).values, expected, atol=1e-6)


def test_a_caller_under_autocast_keeps_it():
    torch.manual_seed(0)
    net = plain()
    inside = cp.compare(net, net, DATA, autocast=torch.bfloat16, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        around = cp.compare(net, net, DATA, progress=False)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert_array_equal(around.values, inside.values)
