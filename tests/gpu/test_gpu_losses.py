"""The CKA losses on a GPU have the values and gradients of the CPU."""

import pytest
import torch
from numpy.testing import assert_allclose

from cka_probe.distill import (
    FeatureCKALoss,
    LogitCKALoss,
    Outputs,
    PatchCKALoss,
    RCKALoss,
    SegmentationCKALoss,
    SignLoss,
)


def inputs(device, scores=False):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    if scores:
        return Outputs(draw(2, 6, 32, 32).requires_grad_()), Outputs(draw(2, 6, 32, 32))
    maps = [draw(16, 8, 32, 32), draw(16, 16, 16, 16)]
    logits = draw(16, 10).requires_grad_(), draw(16, 10)
    others = tuple(m**2 for m in maps)
    return Outputs(logits[0], tuple(m.requires_grad_() for m in maps)), Outputs(logits[1], others)


@pytest.mark.parametrize(
    "loss",
    [FeatureCKALoss(), LogitCKALoss(), RCKALoss(), SignLoss(), PatchCKALoss(patch=4), SegmentationCKALoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_equals_the_cpu(loss):
    scores = isinstance(loss, SegmentationCKALoss)
    results = {}
    for device in ("cpu", "cuda"):
        arguments = inputs(device, scores)
        value = loss.to(device)(*arguments)
        value.backward()
        leaves = [arguments[0].logits, *arguments[0].features]
        results[device] = value.item(), [x.grad.cpu().numpy() for x in leaves if x.grad is not None]
    assert results["cuda"][0] == pytest.approx(results["cpu"][0], abs=1e-5)
    assert results["cpu"][1]
    for found, expected in zip(results["cuda"][1], results["cpu"][1], strict=True):
        assert_allclose(found, expected, atol=1e-5 * max(abs(expected).max(), 1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    arguments = inputs("cuda")
    expected = RCKALoss()(*arguments)
    with torch.autocast("cuda", dtype):
        assert RCKALoss()(*arguments).item() == pytest.approx(expected.item(), abs=1e-4)
