"""A teacher that is the moving average of its student (BYOL, DINO, mean teacher): `AveragedModel` wraps the network."""

import torch
from situation import check, check_notes
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cka_probe as cp


def test_the_layers_of_the_teacher_have_the_names_of_the_student():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(student.parameters(), 0.3)
    batches = [torch.randn(8, 6) for _ in range(3)]
    for batch in batches:
        optimizer.zero_grad()
        student(batch).square().mean().backward()
        optimizer.step()
        teacher.update_parameters(student)
    averaged = int(teacher.n_averaged)
    result = cp.compare(teacher, student, batches, progress=False)
    assert result.rows == result.columns == ("0", "1", "2", "3")
    check(result, teacher.module, batches, student)
    check_notes(result)
    assert int(teacher.n_averaged) == averaged
    assert student.training
