"""compare(outputs=True) puts beside the matrix how alike the networks answer."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import cka_probe as cp
from cka_probe.answers import accuracy_difference, disagreement, error_consistency, jensen_shannon_divergence

compared = partial(cp.compare, progress=False, outputs=True)


def network(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, classes))


def labelled(sizes=(12, 9, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def expected(x, y, batches):
    with torch.no_grad():
        inputs, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
        a, b = x(inputs).double(), y(inputs).double()
    right = [(z.argmax(1) == target).double().mean().item() for z in (a, b)]
    return {
        "samples": len(inputs),
        "disagreement": float(disagreement(a, b)),
        "jensen_shannon_divergence": float(jensen_shannon_divergence(a, b)),
        "accuracy_x": right[0],
        "accuracy_y": right[1],
        "accuracy_difference": float(accuracy_difference(a, b, target)),
        "error_consistency": float(error_consistency(a, b, target)),
    }


def check(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_allclose(found[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("scope", ["minibatch", "dataset"])
def test_in_one_pass_with_the_matrix(scope, tmp_path):
    x, y = network(0), network(1)
    batches = labelled()
    result = compared(x, y, batches, scope=scope)
    check(result.meta["answers"], expected(x, y, batches))
    assert_allclose(result.values, cp.compare(x, y, batches, scope=scope, progress=False).values)
    assert "disagreement" in repr(result)
    assert cp.SimilarityMatrix.load(result.save(tmp_path / "a.npz")).meta["answers"] == result.meta["answers"]
    assert not result.notes or all("answers" not in note for note in result.notes)


def test_nothing_without_being_asked():
    assert "answers" not in cp.compare(network(0), network(1), labelled(), progress=False).meta


def test_data_without_classes():
    x, y = network(0), network(1)
    batches = labelled()
    result = compared(x, y, [inputs for inputs, _ in batches])
    wanted = expected(x, y, batches)
    check(
        result.meta["answers"], {key: wanted[key] for key in ("samples", "disagreement", "jensen_shannon_divergence")}
    )
    assert any("26 of 26 samples have no class" in note for note in result.notes)


class Named(nn.Module):
    """Takes keywords and returns an object with logits, as transformers do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixels, labels=None):
        return {"loss": torch.zeros(()), "logits": self.net(pixels)}


def test_dicts_and_outputs_with_names():
    x, y = network(0), network(1)
    batches = labelled()
    named = [{"pixels": inputs, "labels": target} for inputs, target in batches]
    check(compared(Named(x), Named(y), named).meta["answers"], expected(x, y, batches))


def test_many_models_give_every_pair():
    nets = {"a": network(0), "b": network(1), "c": network(2)}
    batches = labelled()
    found = cp.compare_many(nets, batches, outputs=True, progress=False).meta["answers"]
    assert [pair["models"] for pair in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    check({k: v for k, v in found[1].items() if k != "models"}, expected(nets["a"], nets["c"], batches))


def test_a_network_with_itself_agrees():
    found = compared(network(0), network(0), labelled()).meta["answers"]
    assert found["disagreement"] == 0
    assert abs(found["jensen_shannon_divergence"]) < 1e-12
    net = network(0)
    assert compared(net, net, labelled()).meta["answers"]["disagreement"] == 0


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (network(0), network(1, classes=4), r"answer different questions: outputs \(12, 3\)"),
        (nn.Sequential(nn.Linear(5, 1)), nn.Sequential(nn.Linear(5, 1)), r"shape \(12, 1\) holds no scores"),
        (nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3))), network(0), r"shape \(12, 2, 3\) holds no scores"),
    ],
)
def test_networks_that_do_not_answer_get_a_note(x, y, why):
    result = compared(x, y, labelled())
    assert "answers" not in result.meta
    [note] = [note for note in result.notes if "the answers were not compared" in note]
    assert re.search(why, note)


def test_two_loaders_and_a_resumed_run(tmp_path):
    """Targets come from the first loader; a run that was stopped gives the same answers when it goes on."""
    x, y = network(0), network(1)
    batches = labelled((6,) * 30)
    whole = compared(x, y, batches, data_y=[inputs for inputs, _ in batches])
    check(whole.meta["answers"], expected(x, y, batches))
    path = tmp_path / "run.npz"

    class StopError(Exception):
        pass

    def stopping():
        for index, batch in enumerate(batches):
            if index == 25:
                raise StopError
            yield batch

    with pytest.raises(StopError):
        compared(x, y, stopping(), checkpoint=path)
    assert path.exists()
    assert compared(x, y, batches, checkpoint=path).meta["answers"] == pytest.approx(whole.meta["answers"])


def test_a_custom_forward_and_a_class_in_a_column():
    x, y = network(0), network(1)
    batches = labelled()
    objects = [SimpleNamespace(inputs=inputs) for inputs, _ in batches]
    result = compared(x, y, objects, forward=lambda model, batch: model(batch.inputs))
    assert result.meta["answers"]["disagreement"] == expected(x, y, batches)["disagreement"]
    columns = [(inputs, target[:, None]) for inputs, target in batches]
    check(compared(x, y, columns).meta["answers"], expected(x, y, batches))
