"""Layers whose output does not depend on the input are found; healthy layers never are."""

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture.unchanged import PATIENCE, UnchangedOutputs


def found(batches, outputs):
    """What the search says after each batch; ``outputs`` gives the features of a batch."""
    search, answers = UnchangedOutputs(), []
    for batch in batches:
        search.start(batch)
        search.begin_pass()
        for name, features in outputs(batch).items():
            search.see(name, features)
        answers.append(search.end())
        if not search.watching:
            break
    return answers


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TABLE = numbers(8, 5, seed=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_table_of_positions(dtype):
    batches = [numbers(8, 3, seed=seed) for seed in range(2)]
    answers = found(batches, lambda x: {"layer": x, "table": TABLE.to(dtype), "sum": (x.sum() + TABLE).to(dtype)})
    assert answers == [[], ["table"]]


def test_constant_layers_and_those_of_few_values_are_no_tables():
    signs = torch.tensor([[1.0], [-1.0]]).repeat(4, 1)
    batches = [numbers(8, 3, seed=seed) for seed in range(2)]
    assert found(batches, lambda x: {"dead": torch.zeros(8, 3), "one": x.new_ones(8, 2) * 0.1, "sign": signs}) == [
        [],
        [],
    ]


def test_batches_that_are_equal_say_nothing():
    same, other = numbers(8, 3), numbers(8, 3, seed=1)
    assert found([same, same.clone(), other], lambda x: {"layer": x, "table": TABLE}) == [[], [], ["table"]]
    assert found([same] * 20, lambda x: {"layer": x}) == [[]] * (PATIENCE + 1)


def test_batches_without_tensors_say_nothing():
    assert found(["first", "second"], lambda _batch: {"layer": TABLE}) == [[]]


def test_a_last_batch_of_another_size():
    batches = [numbers(8, 3), numbers(6, 3)]
    assert found(batches, lambda x: {"layer": x, "table": TABLE[: len(x)]}) == [[], []]


class Prompted(nn.Module):
    """Adds learned prompts, one for each sample by chance, through a module that holds them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.prompts, self.drop = nn.Linear(4, 5), Prompts(), nn.Dropout()

    def forward(self, x):
        return self.stem(x) + self.drop(self.prompts())


class Prompts(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 5))

    def forward(self):
        return self.table


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_learned_prompts_and_what_only_passes_them_on_are_left_out(scope):
    net, batches = Prompted(), [numbers(8, 4, seed=seed) for seed in range(4)]
    result = cp.compare(net, net, batches, scope=scope, progress=False)
    assert result.rows == ("stem",)
    assert any(
        "'prompts', 'drop' were left out: its output is the same in every batch, so it does not depend on the input"
        in note
        for note in result.notes
    )
    with pytest.raises(
        cp.CaptureError, match=r"Layer 'prompts' .* cannot be compared in batch 1: its output is the same"
    ):
        cp.compare(net, net, batches, layers=["stem", "prompts"], scope=scope, progress=False)
    alone = cp.compare(net, net, batches, layers=["stem"], scope=scope, progress=False)
    assert result.values[0, 0] == pytest.approx(alone.values[0, 0], abs=1e-12)


def test_a_network_with_dead_units_has_no_note_about_it():
    net = nn.Sequential(nn.Linear(4, 600), nn.ReLU(), nn.Linear(600, 3))
    with torch.no_grad():
        net[0].bias[:550] = -100.0
    batches = [numbers(8, 4, seed=seed) for seed in range(3)]
    assert not cp.compare(net, net, batches, progress=False).notes
