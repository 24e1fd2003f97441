"""Batch norm over all processes: the student's own modules come back, and refusals. GPUs: tests/gpu."""

from types import SimpleNamespace

import pytest
import torch
from small_runs import network, run, weights
from torch import nn

from cka_probe.distill.training.batch_norm import synchronised_batch_norm


def processes(count, device="cuda"):
    return SimpleNamespace(num_processes=count, device=torch.device(device))


def test_the_students_modules_are_replaced_and_come_back_with_what_was_learned():
    student = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2)), nn.Dropout())
    modules, names = list(student.modules()), list(student.state_dict())
    with synchronised_batch_norm(student, processes(2), True):
        assert [type(module) for module in student[1]] == [nn.SyncBatchNorm] * 2
        assert list(student.state_dict()) == names
        with torch.no_grad():
            student[1][0].weight.fill_(3)
            student[1][0].running_mean.add_(1)
            student[1][0].num_batches_tracked.add_(5)
    assert all(now is before for now, before in zip(student.modules(), modules, strict=True))
    norm = student[1][0]
    assert norm.weight.tolist() == [3, 3]
    assert norm.running_mean.tolist() == [1, 1]
    assert int(norm.num_batches_tracked) == 5


def test_after_an_error_the_student_has_its_modules_too():
    student = network(1)
    with pytest.raises(RuntimeError, match="halfway"), synchronised_batch_norm(student, processes(2), True):
        raise RuntimeError("halfway")
    assert type(student.norm) is nn.BatchNorm2d


@pytest.mark.parametrize(("count", "wanted"), [(1, True), (2, False)])
def test_one_process_or_no_wish_changes_nothing(count, wanted):
    student = network(1)
    with synchronised_batch_norm(student, processes(count), wanted):
        assert type(student.norm) is nn.BatchNorm2d


def test_one_process_trains_as_without():
    assert torch.equal(weights(run(sync_batchnorm=True).student), weights(run().student))


def test_several_processes_on_cpus_are_refused():
    with (
        pytest.raises(ValueError, match=r"`sync_batchnorm` needs GPUs: torch's SyncBatchNorm does not run on cpu"),
        synchronised_batch_norm(network(1), processes(2, "cpu"), True),
    ):
        pass


def test_a_subclass_that_may_do_more_is_refused():
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    student = network(1)
    student.norm = WithActivation(4)
    with (
        pytest.raises(ValueError, match=r"the student's ConvNet.norm is a WithActivation, which may do more"),
        synchronised_batch_norm(student, processes(2), True),
    ):
        pass
    assert type(student.norm) is WithActivation
