"""An ensemble in which one network stands twice by mistake: both names give the same numbers, and a note says why."""

import numpy as np
import torch
from situation import check_notes
from torch import nn

import cka_probe as cp


def test_the_same_network_under_two_names():
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2))
    batches = [torch.randn(8, 6) for _ in range(3)]
    result = cp.compare_many({"a": first, "b": second, "c": first}, batches, progress=False)
    np.testing.assert_allclose(result.values[:3, 6:], result.values[:3, :3], atol=1e-12)
    check_notes(result, r"(a.*c|c.*a).*(share|same|one)|(share|same|one).*a.*c")
