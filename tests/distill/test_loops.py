"""The loops of docs/howto/loops.md train the student that `distill` trains."""

import re
from pathlib import Path

import pytest
import torch

from cka_probe.distill import StepDecay, distill

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "loops.md"


def section(title):
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(rf"^## {title}\n.*?^```py\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture(scope="module")
def shared():
    """The names of the page's first block, and the student of `distill`."""
    names: dict = {"__name__": "loops"}
    exec(re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)[0], names)
    student = names["network"](8)
    options = {"epochs": 1, "schedule": StepDecay(milestones=()), "student_layers": names["layers"], "progress": False}
    distill(names["teacher"], student, names["loader"], names["loader"], names["loss"], **options)
    return names, student


@pytest.fixture
def _accelerate_as_before():
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_accelerate_as_before")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning")  # its own use of torch's trees
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # advice on workers
@pytest.mark.parametrize(
    ("title", "library"),
    [
        ("Plain PyTorch", "torch"),
        ("Accelerate", "accelerate"),
        ("The Trainer of transformers", "transformers"),
        ("Lightning", "lightning"),
    ],
)
def test_a_loop_trains_the_student_of_distill(title, library, shared, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names, expected = shared
    names = dict(names)
    exec(section(title), names)
    start, weights = names["network"](8).state_dict(), expected.state_dict()
    assert len(names["loader"]) == 20
    assert not torch.allclose(start["0.weight"], weights["0.weight"], atol=1e-3)
    for name, weight in names["student"].state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)
