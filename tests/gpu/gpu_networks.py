"""Networks and batches on the GPU, shared by the tests."""

import torch
from torch import nn


def convolutional(offset=0.0, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )
    with torch.no_grad():
        model[3].bias += offset
    return model.cuda()


def images(count=4, n=64, device="cuda"):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 16, 16, generator=generator).to(device) for _ in range(count)]


def full_precision_convolutions():
    """A context without TF32, in which convolutions give the same values on GPU and CPU."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True)
