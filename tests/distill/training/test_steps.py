"""Microbatches with the loss of the whole batch have the same gradient and terms as one large batch."""

from functools import partial

import numpy as np
import pytest
import torch
from small_runs import cpu_accelerator, images, network, run, weights
from torch import nn
from torch.nn import functional

from cka_probe.distill.losses.contract import Outputs
from cka_probe.distill.taps.tapped_model import TappedModel
from cka_probe.distill.training.batches import Batch
from cka_probe.distill.training.steps import accumulated_gradient, exact_gradient, weighted_terms


class PairDistances(nn.Module):
    """Compares samples with each other, as CKA does, so that it differs between microbatches. Has a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def terms(self, student, teacher, target=None):
        def distances(x):
            x = x.flatten(1)
            return (x[:, None] - x[None]).square().sum(-1).log1p()

        return {
            "features": (self.scale * distances(student.features[0]) - distances(teacher.features[0])).square().mean(),
            "logits": (distances(student.logits) - distances(teacher.logits)).square().mean(),
        }


def gradients(method, parts, *, norm=False, dropout=0.0, count=10):
    student = network(1, norm=norm, dropout=dropout).double().train()
    teacher = network(2).double().eval()
    loss = PairDistances()
    x, y = images(count).tensors
    batch = Batch(x.double(), y, None)
    torch.manual_seed(0)
    with (
        cpu_accelerator() as accelerator,
        TappedModel(student, ["norm"]) as pupil,
        TappedModel(teacher, ["norm"]) as master,
    ):

        def teach(piece):
            with torch.no_grad():
                return master(piece.inputs)

        terms_of = partial(weighted_terms, loss, functional.cross_entropy, 0.7)
        logits, terms = method(accelerator, pupil, teach, terms_of, batch, parts)
    found = torch.cat([p.grad.flatten() for p in [*student.parameters(), *loss.parameters()]])
    return found, {name: term.item() for name, term in terms.items()}, logits, student, torch.rand(3)


@pytest.mark.parametrize("parts", [2, 3, 5, 99])
def test_exact_accumulation_is_the_large_batch(parts):
    expected, terms, logits, *_ = gradients(accumulated_gradient, 1)
    found, found_terms, found_logits, *_ = gradients(exact_gradient, parts)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found_logits, logits, rtol=1e-12)
    assert found_terms == pytest.approx(terms, rel=1e-12)


def test_the_mean_of_microbatches_is_not_the_large_batch():
    expected, *_ = gradients(accumulated_gradient, 1)
    found, *_ = gradients(accumulated_gradient, 5)
    assert (found - expected).norm() > 0.1 * expected.norm()


def test_both_passes_see_the_same_dropout_and_batch_norm_moves_once():
    *_, student, after = gradients(exact_gradient, 5, norm=True, dropout=0.5)
    *_, plain, plain_after = gradients(accumulated_gradient, 5, norm=True, dropout=0.5)
    assert student.norm.num_batches_tracked == plain.norm.num_batches_tracked == 5
    np.testing.assert_allclose(student.norm.running_mean, plain.norm.running_mean, rtol=1e-12)
    assert torch.equal(after, plain_after)  # the generator is in the same state as after one pass

    # With dropout the gradient is that of one graph in which every microbatch is passed once with the same masks.
    student, teacher, loss = network(1, norm=False, dropout=0.5).double(), network(2).double().eval(), PairDistances()
    x, y = images(10).tensors
    torch.manual_seed(0)
    with TappedModel(student, ["norm"]) as pupil, TappedModel(teacher, ["norm"]) as master:
        outputs = [pupil(x[i : i + 2].double()) for i in range(0, 10, 2)]
        whole = Outputs(torch.cat([o.logits for o in outputs]), (torch.cat([o.features[0] for o in outputs]),))
        sum(weighted_terms(loss, functional.cross_entropy, 0.7, whole, master(x.double()), y).values()).backward()
    expected = torch.cat([p.grad.flatten() for p in [*student.parameters(), *loss.parameters()]])
    found, *_ = gradients(exact_gradient, 5, dropout=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_whole_run_with_microbatches_equals_the_run_without():
    def go(steps, accumulation="exact", loss=True):
        options = {"accumulation_steps": steps, "accumulation": accumulation, "student_layers": ["norm"]}
        return run(network(1, norm=False), network(2), PairDistances() if loss else None, learning_rate=0.01, **options)

    one, four = go(1), go(4)
    np.testing.assert_allclose(weights(four.student), weights(one.student), atol=2e-5)
    np.testing.assert_allclose(four.history["features"], one.history["features"], rtol=1e-4)
    alone, alone_four = go(1, loss=False), go(4, "mean", loss=False)
    np.testing.assert_allclose(weights(alone_four.student), weights(alone.student), atol=2e-6)


def test_batches_split_evenly_and_never_into_single_samples():
    batch = Batch(torch.zeros(11, 2), torch.zeros(11), torch.arange(11))
    assert [len(piece) for piece in batch.split(4)] == [3, 3, 2, 3]
    assert [len(piece) for piece in batch.split(11)] == [2, 2, 3, 2, 2]
    assert torch.equal(torch.cat([piece.indices for piece in batch.split(3)]), batch.indices)
    mapping = Batch({"x": torch.zeros(5, 2), "name": "text"}, torch.zeros(5), None)
    assert [len(piece.inputs["x"]) for piece in mapping.split(2)] == [2, 3]
