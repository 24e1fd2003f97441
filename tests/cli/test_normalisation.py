"""Images of a folder are normalised as the weights of each network say."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn
from torch.utils.data import Subset, TensorDataset
from torchvision import transforms

import cka_probe as cp
from cka_probe.cli.inputs import load_data
from cka_probe.cli.normalisation import normalisation
from cka_probe.distill.data.images import GreyToChannels, StoredImages
from cka_probe.distill.models.saved_student import describe_student
from cka_probe.distill.recipes.loading import normalisation_of


class Timm(nn.Module):
    def __init__(self, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)):
        super().__init__()
        self.pretrained_cfg = {"mean": mean, "std": std}


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_where_the_numbers_come_from(tmp_path):
    assert normalisation(nn.Identity(), "resnet8").mean == (0.485, 0.456, 0.406)
    found = normalisation(Timm(), "timm:some_net")
    assert (found.mean, found.deviation) == ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    assert "timm" in found.origin
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    assert normalisation(nn.Identity(), f"hf:{tmp_path}")[:2] == ((0.1, 0.2, 0.3), (1, 2, 3))
    file.write_text(json.dumps({"do_normalize": False}))
    assert normalisation(nn.Identity(), f"hf:{tmp_path}")[:2] == ((0, 0, 0), (1, 1, 1))


def test_a_run_says_what_was_taken_out_of_its_images(tmp_path):
    grey = StoredImages(
        torch.zeros(2, 4, 4, dtype=torch.uint8), torch.arange(2), ["a", "b"], GreyToChannels(0.25, 0.5, 3)
    )
    whole = TensorDataset(torch.zeros(2, 3, 4, 4), torch.arange(2))
    colour = TensorDataset(torch.zeros(2, 3, 4, 4), torch.arange(2))
    colour.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1, 0.2, 0.3), (1, 2, 3))])
    for data, mean, deviation in (
        (grey, (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)),
        (Subset(colour, [0]), (0.1, 0.2, 0.3), (1, 2, 3)),
        (whole, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        (tmp_path / "student.json").write_text(describe_student("resnet8", 2, [], normalisation_of(data)))
        assert normalisation(nn.Identity(), str(tmp_path))[:2] == (mean, deviation)


def test_numbers_that_are_none_are_refused(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    for text, message in (
        ("{", "is no valid JSON"),
        ('{"image_mean": 1, "image_std": [1]}', "must be lists of numbers"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            normalisation(nn.Identity(), f"hf:{tmp_path}")
    with pytest.raises(ValueError, match="must be lists of numbers"):
        normalisation(Timm(std=(0, 0, 0)), "timm:x")


def test_images_have_the_mean_and_deviation_taken_out(photos):
    mean, deviation = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    (batch,) = load_data(str(photos), image_size=16, normalise=(mean, deviation))
    raw = np.asarray(Image.open(photos / "3.png"), dtype=np.float64) / 255
    expected = (raw - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(batch[3].permute(1, 2, 0), expected, atol=1e-5)


def test_two_networks_each_get_their_own_images(photos, tmp_path, capsys):
    source = (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n    pass\n"
        "def one():\n    torch.manual_seed(0)\n    return Net(nn.Flatten(), nn.ReLU(), nn.Linear(768, 4))\n"
        "def two():\n    net = one()\n    net.pretrained_cfg = {'mean': (.5,) * 3, 'std': (.5,) * 3}\n    return net\n"
    )
    (tmp_path / "nets.py").write_text(source)
    result = tmp_path / "r.npz"
    arguments = ("--data", photos, "--image-size", 16, "--batch-size", 8, "-o", result, "-q", "--layers", "1,2")
    code, _, err = run(capsys, "compare", f"{tmp_path}/nets.py:one", f"{tmp_path}/nets.py:two", *arguments)
    assert (code, err) == (0, "")
    found = cp.SimilarityMatrix.load(result)
    notes = [note for note in found.notes if note.startswith("images for")]
    assert len(notes) == 2
    assert "mean 0.5, 0.5, 0.5" in notes[1]
    raw = torch.stack([torch.from_numpy(np.asarray(Image.open(photos / f"{i}.png")) / 255.0) for i in range(8)])
    raw = raw.permute(0, 3, 1, 2)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((raw - mean[:, None, None]) / deviation[:, None, None]).flatten(1).relu()
    y = ((raw - 0.5) / 0.5).flatten(1).relu()
    assert found["1", "1"] == pytest.approx(float(cp.cka(x, y)), abs=1e-5)
