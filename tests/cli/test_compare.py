import json

import numpy as np
import pytest
import torch
from command_line import run

import cka_probe as cp
from cka_probe.cli import main
from cka_probe.distill.models import build

SMALL = ("--samples", 48, "--batch-size", 16, "--image-size", 16, "--num-classes", 10)


def test_two_networks_are_compared_saved_and_drawn(capsys, tmp_path):
    result, picture = tmp_path / "r.npz", tmp_path / "r.png"
    code, out, _ = run(
        capsys, "compare", "resnet8", "resnet14", *SMALL, "--layers", "conv1,layer?.?", "-o", result, "--plot", picture
    )
    assert code == 0
    assert str(result) in out
    matrix = cp.SimilarityMatrix.load(result)
    assert matrix.rows[0] == "conv1"
    assert matrix.shape == (4, 7)
    assert matrix.meta["samples"] == 48
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.npz", "r.png"]


def test_json_can_be_parsed_and_the_seed_repeats_the_result(capsys):
    arguments = ("compare", "resnet8", *SMALL, "--layers", "layer?", "--json", "--seed", 3)
    code, out, _ = run(capsys, *arguments)
    first = json.loads(out)
    assert code == 0
    assert first["rows"] == ["layer1", "layer2", "layer3"]
    np.testing.assert_allclose(np.diag(first["values"]), 1, atol=1e-6)
    assert json.loads(run(capsys, *arguments)[1]) == first


def test_counted_p_values_and_answers(capsys):
    code, out, _ = run(
        capsys, "compare", "resnet8", "resnet14", *SMALL, "--layers", "fc", "--permutations", 19, "--outputs", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert found["extra"]["corrected_p_value"][0][0] >= 1 / 20
    assert found["meta"]["permutations"] == 19
    assert 0 <= found["meta"]["answers"]["disagreement"] <= 1


def test_files_of_features_are_compared_without_models(capsys, tmp_path):
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(40, 3)), "b": rng.normal(size=(40, 2, 5))}
    np.savez(tmp_path / "x.npz", **x)
    np.savez(tmp_path / "y.npz", c=x["a"] @ np.linalg.qr(rng.normal(size=(3, 3)))[0])
    code, out, _ = run(capsys, "compare", tmp_path / "x.npz", tmp_path / "y.npz", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["values"][0][0] == pytest.approx(1, abs=1e-12)
    assert abs(found["values"][1][0]) < 0.5
    assert found["chance"] == [[0.0], [0.0]]
    assert found["interval"][0][1][0] < found["values"][1][0] < found["interval"][1][1][0]
    assert found["meta"]["model_y"] == str(tmp_path / "y.npz")
    code, out, _ = run(capsys, "compare", tmp_path / "x.npz", tmp_path / "y.npz", "--measure", "procrustes", "--json")
    assert json.loads(out)["measure"] == "procrustes"
    assert json.loads(out)["values"][0][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "nope", "--weights-x", "nothere.pt"), "--layers, --weights-x: for networks only"),
        (("--scope", "minibatch"), "Files of features have no minibatches"),
        (("--measure", "ckaa"), "No measure is called 'ckaa'"),
    ],
)
def test_options_of_networks_are_refused_for_files_of_features(capsys, tmp_path, arguments, message):
    np.savez(tmp_path / "x.npz", a=np.random.default_rng(0).normal(size=(20, 3)))
    code, _, err = run(capsys, "compare", tmp_path / "x.npz", *arguments)
    assert code == 2
    assert message in err
    code, _, err = run(capsys, "compare", tmp_path / "x.npz", "resnet8")
    assert code == 2
    assert "a network cannot be compared with a file of features" in err


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("--output", "nodir/r.npz", "There is no folder nodir to write r.npz into"),
        ("--plot", "nodir/r.png", "There is no folder nodir to write r.png into"),
        ("--plot", "r.xyz", "--plot must end in one of"),
    ],
)
def test_paths_are_checked_before_anything_runs(capsys, option, path, message):
    # The network does not exist: its message would come first if it had been loaded.
    code, _, err = run(capsys, "compare", "no_such_network", option, path)
    assert code == 2
    assert message in err


def test_an_error_of_torch_names_the_model_and_the_batch(capsys, tmp_path):
    np.savez(tmp_path / "data.npz", a=np.zeros((60, 5), np.float32))
    code, _, err = run(capsys, "compare", "resnet8", "--data", tmp_path / "data.npz")
    assert code == 2
    assert "resnet8 (ResNet) does not run on batches of shape (60, 5)" in err


RANDOM = "no weights given: {} has random weights (seed {})"


def test_random_weights_are_noted(capsys, tmp_path):
    small = (*SMALL, "--layers", "fc", "--json")
    code, out, err = run(capsys, "compare", "resnet8", "resnet14", *small, "--seed", 3)
    assert code == 0
    assert json.loads(out)["notes"][:2] == [RANDOM.format(name, 3) for name in ("resnet8", "resnet14")]
    assert err.count("Note: no weights given") == 2
    assert run(capsys, "compare", "resnet8", *small, "--quiet")[2] == ""
    code, out, _ = run(capsys, "compare", "resnet8", *SMALL, "--layers", "fc", "-o", tmp_path / "r.npz")
    assert out.count(RANDOM.format("resnet8", 0)) == 1
    assert cp.SimilarityMatrix.load(tmp_path / "r.npz").notes[0] == RANDOM.format("resnet8", 0)


def test_given_weights_are_not_called_random(capsys, tmp_path):
    torch.manual_seed(5)
    torch.save(build("resnet8", num_classes=10).state_dict(), tmp_path / "w.pt")
    small = (*SMALL, "--layers", "conv1,fc", "--json")
    # The second network is the first one, with its weights.
    code, out, _ = run(capsys, "compare", "resnet8", "--weights-x", tmp_path / "w.pt", *small)
    found = json.loads(out)
    assert code == 0
    assert not any("random" in note for note in found["notes"])
    np.testing.assert_allclose(np.diag(found["values"]), 1, atol=1e-6)
    # Named once more without weights, it is another network.
    code, out, _ = run(capsys, "compare", "resnet8", "resnet8", "--weights-x", tmp_path / "w.pt", *small)
    found = json.loads(out)
    assert found["notes"][0] == RANDOM.format("resnet8 (no weights)", 0)
    assert found["meta"]["model_x"] == f"resnet8 ({tmp_path / 'w.pt'})"
    assert found["values"][1][1] < 0.999


def test_a_function_is_not_called_random(capsys, tmp_path):
    (tmp_path / "own_network.py").write_text(
        "from cka_probe.distill.models import build\ndef make():\n    return build('resnet8', 10)\n"
    )
    code, out, _ = run(capsys, "compare", f"{tmp_path / 'own_network.py'}:make", *SMALL, "--layers", "fc", "--json")
    assert code == 0
    assert not any("weights" in note for note in json.loads(out)["notes"])


def test_arrays_of_a_file_that_are_not_used_are_noted(capsys, tmp_path):
    images = np.random.default_rng(0).normal(size=(20, 3, 8, 8))  # float64, which becomes float32
    np.savez(tmp_path / "d.npz", x=images, mask=images, labels=np.zeros(20))
    code, out, _ = run(capsys, "compare", "resnet8", "--data", tmp_path / "d.npz", "--layers", "fc", "--json")
    assert code == 0
    assert f"{tmp_path / 'd.npz'}: only its first array 'x' was used, not 'mask'" in json.loads(out)["notes"]
    np.save(tmp_path / "d.npy", images)
    code, _, err = run(capsys, "compare", "resnet8", "--data", tmp_path / "d.npy", "--image-size", 16)
    assert code == 2
    assert "--image-size does not apply to --data" in err


def test_notes_are_printed_once(capsys):
    code, out, _ = run(capsys, "compare", "resnet8", "--scope", "dataset", "--samples", "64", "--layers", "fc")
    assert code == 0
    assert out.count("route grams") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet21",), "resnet20"),
        (("resnet8", "--layers", "layer9"), "Did you mean"),
        (("resnet8", "--kernel", "cubic"), "No kernel is called"),
        (("resnet8", "--data", "nowhere"), "There is no data 'nowhere'"),
        (("missing.npz",), "There is no file missing.npz"),
        (("resnet8", "-o", "result.png"), "--output must end in .npz"),
        (("resnet8", "--batch-size", "3", "--samples", "3"), "at least 4"),
        (("resnet8", "--samples", "-3"), "--samples"),
        (("resnet8", "--num-classes", "0"), "`num_classes` must be a positive integer"),
        (("resnet8", "--device", "foo"), "'foo' cannot be used here"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, arguments, message):
    code, out, err = run(capsys, "compare", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="Did you mean"):
        main(["--debug", "compare", "resnet21"])


def test_info_shows_the_machine_or_the_layers_of_a_network(capsys):
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["cka_probe"] == cp.__version__
    assert {"cupy", "accelerate", "pycocotools"} <= set(facts)
    code, out, _ = run(capsys, "info", "resnet8", "--json", "--num-classes", 10)
    table = {row["layer"]: row for row in json.loads(out)}
    assert table["fc"]["output"] == "(2, 10)"
    assert table["conv1"]["parameters"] == 3 * 16 * 9
    code, out, _ = run(capsys, "info", "resnet8", "--layers", "blocks")
    assert code == 0
    assert "layer1.0" in out
    assert "conv1" not in out
