"""Every loss and baseline under torch.compile, torch.func.grad, vmap, and with second derivatives."""

import pytest
import torch

import cka_probe as cp
from cka_probe.distill import baselines, losses
from cka_probe.distill.losses import Outputs


def logits(seed, samples=6):
    return Outputs(torch.randn(samples, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def maps(seed, channels=3, side=4, samples=5):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(features=(torch.randn(samples, channels, side, side, generator=generator, dtype=torch.float64),))


def narrow(seed):
    return Outputs(features=(logits(seed, 8).logits[:, :3],))


def score_maps(seed):
    return Outputs(maps(seed, channels=5, side=3).features[0])


def both(seed):
    return Outputs(logits(seed, 5).logits, maps(seed).features)


def tokens(seed):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]])
    generator = torch.Generator().manual_seed(seed)
    return Outputs(features=(torch.randn(5, 4, 3, generator=generator, dtype=torch.float64),), mask=mask)


KERNELS = [cp.RBF(), cp.RBF(bandwidth=2.0), cp.Laplacian(), cp.Polynomial(), cp.Cosine()]
CASES = [
    *((losses.FeatureCKALoss(estimator=e), inputs) for e in ("biased", "unbiased") for inputs in (maps, narrow)),
    *((losses.FeatureCKALoss(kernel=kernel), maps) for kernel in KERNELS),
    (losses.FeatureCKALoss(variant="released"), maps),
    (losses.LogitCKALoss(), logits),
    (losses.LogitCKALoss(temperature=2.0, estimator="unbiased"), logits),
    (losses.LogitCKALoss(variant="released"), logits),
    (losses.RCKALoss(), both),
    (losses.SignLoss(), logits),
    *((losses.PatchCKALoss(2, relation, inter_weight=2.0), maps) for relation in ("patch", "sample", "pixel")),
    (losses.PatchCKALoss(2, mimic_weight=1.0, estimator="unbiased", inter_weight=1.0), maps),
    (losses.PatchCKALoss(2, variant="released", inter_weight=1.0), maps),
    (losses.SegmentationCKALoss(), score_maps),
    (losses.SegmentationCKALoss(relation="sample"), score_maps),
    *((losses.HiddenStateCKALoss(pooling=pooling), tokens) for pooling in ("mean", "last", "cls")),
    *((getattr(baselines, f"{name}Loss")(), logits) for name in ("KD", "DKD", "DIST")),
    *((getattr(baselines, f"{name}Loss")(), maps) for name in ("SP", "RKD", "CC", "AT", "PKD")),
    *((getattr(baselines, f"{name}Loss")(), maps) for name in ("FitNet", "CWD")),
]
each_loss = pytest.mark.parametrize(("loss", "inputs"), CASES, ids=[f"{loss}"[:60] for loss, _ in CASES])


def prepared(loss, inputs):
    """The loss as a function of the student's tensors alone, and these tensors."""
    student, teacher = inputs(0), inputs(1)
    wider = type(loss).__name__ in ("FitNetLoss", "CWDLoss")
    if wider:
        teacher = maps(1, channels=4)
    if hasattr(loss, "prepare"):
        torch.manual_seed(0)
        loss.prepare(student.features, teacher.features)
    target = None if student.logits is None or student.logits.ndim > 2 else torch.arange(len(student.logits)) % 5
    leaves = [tensor for tensor in (student.logits, *student.features) if tensor is not None]

    def rebuilt(tensors):
        if student.logits is None:
            return Outputs(features=tuple(tensors), mask=student.mask)
        return Outputs(tensors[0], tuple(tensors[1:]), student.mask)

    return (lambda call, *tensors: call(rebuilt(tensors), teacher, target)), [x.requires_grad_() for x in leaves]


def test_the_cases_are_all_losses_and_baselines():
    every = {getattr(room, name) for room in (losses, baselines) for name in room.__all__ if name.endswith("Loss")}
    assert {type(loss) for loss, _ in CASES} == every - {losses.DistillationLoss}


@each_loss
def test_a_compiled_loss_is_one_graph_with_the_same_value_and_gradient(loss, inputs):
    run, leaves = prepared(loss, inputs)
    torch.compiler.reset()
    # Without Inductor's code generation: what can break a graph is in its capture and its derivative.
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [run(call, *leaves) for call in (loss, compiled)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(value, leaves) for value in values]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-10)


@each_loss
def test_second_derivatives(loss, inputs):
    run, leaves = prepared(loss, inputs)
    # The released code scales by the largest entry, and some baselines have kinks: the points are away from these.
    torch.manual_seed(0)
    assert torch.autograd.gradgradcheck(lambda *xs: run(loss, *xs), leaves, fast_mode=True, atol=1e-4)


# torch computes its kl_div under vmap one by one, and says that this is slow.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@each_loss
def test_transforms_of_functions(loss, inputs):
    run, leaves = prepared(loss, inputs)
    places = tuple(range(len(leaves)))
    expected = torch.autograd.grad(run(loss, *leaves), leaves)
    plain = [x.detach() for x in leaves]
    torch.testing.assert_close(torch.func.grad(lambda *xs: run(loss, *xs), places)(*plain), expected)
    stacks = [torch.stack([x, x.flip(0) + x.square()]) for x in plain]
    found = torch.vmap(lambda *xs: run(loss, *xs))(*stacks)
    by_loop = [run(loss, *(stack[i] for stack in stacks)) for i in range(2)]
    torch.testing.assert_close(found, torch.stack(by_loop))
    each = torch.vmap(torch.func.grad(lambda *xs: run(loss, *xs), places))(*stacks)
    torch.testing.assert_close([x[0] for x in each], list(expected))


def test_an_undefined_compiled_loss_is_nan():
    torch.compiler.reset()
    compiled = torch.compile(losses.RCKALoss(), fullgraph=True, backend="aot_eager")
    outputs = both(0)
    assert compiled(outputs._replace(logits=torch.ones(5, 5)), outputs).isnan()
