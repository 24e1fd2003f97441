"""distill() with networks under torch.compile: the student of the uncompiled run, and plain names in the files."""

import pytest
import torch
from safetensors.torch import load_file
from small_runs import ConvNet, Mimic, images, network, run, weights

from cka_probe.distill.models import load_weights
from cka_probe.distill.training.diagnostics import Diagnostics


def go(student, teacher, directory=None, **options):
    """Batches of one size: the rounding of compiled code grows where a ReLU of a small batch flips."""
    options = {"student_layers": ["norm"], "epochs": 2, **options}
    return run(student, teacher, Mimic(), train=images(40), output_dir=directory, **options)


@pytest.fixture(scope="module")
def plain():
    return go(network(1), network(2))


def wrapped(model):
    """Compiled, and run before the taps are set."""
    outer = torch.compile(model, backend="aot_eager")
    outer(images(4).tensors[0])
    model.norm.reset_running_stats()
    return outer


def in_place(model):
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("compiled", [wrapped, in_place])
def test_a_compiled_student_and_teacher_train_as_uncompiled_ones(compiled, plain, tmp_path):
    student, teacher = compiled(network(1)), compiled(network(2))
    before = student.stem.weight.detach().clone()
    diagnostics = Diagnostics(every=1, samples=8)
    result = go(student, teacher, tmp_path, diagnostics=diagnostics)
    assert result.student is student
    assert not torch.equal(student.stem.weight, before)
    torch.testing.assert_close(weights(student), weights(plain.student), atol=1e-5, rtol=1e-4)
    names = network(1).state_dict().keys()
    assert load_file(tmp_path / "last.safetensors").keys() == names
    assert result.best_state.keys() == names
    load_weights(again := ConvNet(), tmp_path / "last.safetensors")
    assert torch.equal(weights(again), weights(student))
    assert not any(module._forward_hooks for module in student.modules())
    assert torch.equal(
        weights(go(compiled(network(1)), compiled(network(2)), tmp_path, diagnostics=diagnostics).student),
        weights(student),
    )


def test_layers_are_found_in_a_compiled_network_and_the_average_is_of_the_network_inside(plain):
    result = go(wrapped(network(1)), network(2), student_layers="auto", ema=0.9)
    expected = go(network(1), network(2), student_layers="auto", ema=0.9)
    torch.testing.assert_close(weights(result.student), weights(expected.student), atol=1e-5, rtol=1e-4)


def test_compile_true_compiles_both_for_the_run_and_gives_them_back(plain, tmp_path):
    student, teacher = network(1), network(2)
    result = go(student, teacher, tmp_path, compile=True)
    assert result.student is student
    torch.testing.assert_close(weights(student), weights(plain.student), atol=1e-5, rtol=1e-4)
    assert student._compiled_call_impl is None
    with pytest.raises(ValueError, match=r"compile was .* and is now"):
        go(network(1), network(2), tmp_path)
