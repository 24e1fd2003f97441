"""What can be known before the first batch is checked before it."""

from pathlib import Path

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.comparison.checks import check_checkpoint, checked_kernel
from cka_probe.comparison.history import SimilarityHistory


class Untouched:
    """Data that must not be read."""

    def __iter__(self):
        raise AssertionError("a batch was read before the options were checked")


def network():
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def own_kernel(x, y=None):
    return x @ (x if y is None else y).mT


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": "rbf"}, TypeError, r"`kernel` is the text 'rbf'.*kernel=cka_probe\.RBF\(\)"),
        ({"kernel": "gauss"}, TypeError, r"`kernel` is the text 'gauss'.*Linear\(\), RBF\(\)"),
        ({"kernel": cp.RBF}, TypeError, r"`kernel` is the class RBF.*kernel=RBF\(\)"),
        ({"kernel": 0.5}, TypeError, "`kernel` must be a kernel"),
        ({"measure": None}, TypeError, "`measure` must be a name"),
        ({"measure": "ckaa"}, ValueError, "No measure is called 'ckaa'"),
        ({"pooling": "avg"}, ValueError, "`pooling` must be"),
        ({"estimator": "debiased"}, ValueError, "debiased"),
        ({"forward": lambda batch: batch}, TypeError, r"forward\(model, batch\), but takes \(batch\)"),
        ({"forward": "forward_features"}, TypeError, r"`forward` must be a function forward\(model, batch\)"),
        ({"autocast": "bf16"}, TypeError, r"`autocast` must be torch\.bfloat16"),
        ({"autocast": True}, TypeError, r"`autocast` must be torch\.bfloat16"),
        ({"distributed": True}, RuntimeError, "distributed=True needs torch.distributed.*init_process_group"),
        ({"checkpoint": "no/such/folder/run.npz"}, FileNotFoundError, "the folder .*no/such/folder does not exist"),
        ({"checkpoint": "."}, IsADirectoryError, r"`checkpoint`: \. is a folder"),
        ({"checkpoint": True}, TypeError, "`checkpoint` must be the path of a file, got True"),
        ({"checkpoint": "run.npz", "kernel": own_kernel}, ValueError, "the next process"),
        ({"device": ["cuda"]}, ValueError, "`device`: .* cannot be used here"),
        ({"layers_y": "conv*"}, ValueError, "conv"),
        ({"names": ("a", 2)}, ValueError, "`names` must be two"),
        ({"names": ("a", "b", "c")}, ValueError, "`names` must be two"),
    ],
)
def test_options_are_checked_before_a_batch_is_read(options, error, message):
    with pytest.raises(error, match=message):
        cp.compare(network(), network(), Untouched(), progress=False, **options)


def test_a_kernel_of_ones_own_passes():
    assert checked_kernel(own_kernel) is own_kernel
    assert checked_kernel(None) == cp.Linear()
    assert checked_kernel(cp.RBF(0.5)) == cp.RBF(0.5)


@pytest.mark.parametrize("kind", ["weights", "result", "text", "signature"])
def test_a_checkpoint_path_that_holds_another_file_is_refused_and_the_file_stays(tmp_path, kind):
    net, path = network(), tmp_path / "run.npz"
    if kind == "weights":
        torch.save(net.state_dict(), path)
    elif kind == "result":
        cp.compare(net, net, [torch.randn(8, 6)], progress=False).save(path)
    elif kind == "signature":
        cp.signature(net, [torch.randn(8, 6)], progress=False).save(path)
    else:
        path.write_text("my notes")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"is not a checkpoint of a comparison.*Give another path"):
        cp.compare(net, net, Untouched(), checkpoint=path, progress=False)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cka_probe.comparison.checks.tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match="no file can be written in"):
        check_checkpoint(tmp_path / "run.npz", cp.Linear())


def test_the_check_leaves_nothing_in_the_folder(tmp_path):
    check_checkpoint(str(tmp_path / "run.npz"), cp.Linear())
    assert not list(Path(tmp_path).iterdir())


def test_equal_names_of_two_networks_are_told_apart_in_messages():
    class Dead(nn.Module):
        def forward(self, x):
            return x * 0

    result = cp.compare(
        network(), nn.Sequential(nn.Linear(6, 6), Dead()), [torch.randn(8, 6)], names=("net", "net"), progress=False
    )
    assert (result.meta["model_x"], result.meta["model_y"]) == ("net", "net")
    [note] = [note for note in result.notes if "constant" in note]
    assert note.startswith("net (columns)")


def test_models_may_be_named_by_their_training_steps():
    nets = {0: network(), 100: network()}
    result = cp.compare_many(nets, [torch.randn(8, 6)], layers={0: "leaves", 100: ["0"]}, progress=False)
    assert result.row_models == ("0", "0", "100")
    with pytest.raises(ValueError, match="the same as text: 0, '0'"):
        cp.compare_many({0: network(), "0": network()}, Untouched(), progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": own_kernel}, ValueError, "A signature needs a kernel of cka_probe"),
        ({"kernel": "rbf"}, TypeError, "`kernel` is the text 'rbf'"),
        ({"name": 3}, TypeError, "`name` must be a text, got 3"),
    ],
)
def test_options_of_a_signature_are_checked_before_a_batch_is_read(options, error, message):
    with pytest.raises(error, match=message):
        cp.signature(network(), Untouched(), progress=False, **options)


@pytest.mark.parametrize(
    ("reference", "data", "options", "error", "message"),
    [
        (network(), [], {"layer": "0"}, TypeError, r"`compare` has no option 'layer'\. Did you mean 'layers'"),
        (network(), [], {"kernel": cp.RBF}, TypeError, "`kernel` is the class RBF"),
        (network(), [], {"layers": "conv1"}, ValueError, "has no layer 'conv1'"),
        (network().state_dict(), [], {}, TypeError, "`reference` is a state dict"),
        (network(), iter([torch.ones(8, 6)]), {}, TypeError, "can be read only once"),
    ],
)
def test_a_history_checks_its_options_when_it_is_made_and_not_after_the_first_epoch(
    reference, data, options, error, message
):
    with pytest.raises(error, match=message):
        SimilarityHistory(reference, data, **options)


def test_what_may_come_later_is_not_asked_of_a_history(tmp_path):
    SimilarityHistory(network(), [], distributed=True, checkpoint=tmp_path / "later" / "run.npz", exclude="adapter")
    history = SimilarityHistory(network(), [torch.randn(8, 6)], layers=iter(["0"]))
    model = network()
    assert all(history.measure(model, step).rows == ("0",) for step in range(2))
