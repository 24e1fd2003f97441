"""`pip install cka-probe` without extras: compare, losses and the command line work; training names its extra."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Library: its module. Every library of the extras `distill` and `dense`.
MODULES = {
    "accelerate": "accelerate",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "scikit-learn": "sklearn",
    "tomli-w": "tomli_w",
    "torchmetrics": "torchmetrics",
}

HIDE = """
import sys
from importlib.machinery import PathFinder
hidden, find = set(sys.argv[1].split(",")), PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] in hidden else find(name, path, target)
)
"""


def bare(code, *arguments, hidden=None):
    """Run code in a process that cannot find the hidden modules, by default all of MODULES; return the process."""
    names = ",".join(MODULES.values() if hidden is None else hidden)
    command = [sys.executable, "-c", HIDE + code, names, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_table_of_modules_is_that_of_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = {line.partition(">")[0] for extra in ("distill", "dense") for line in extras[extra]}
    assert listed - {"cka-probe[distill]"} == set(MODULES)
    assert not listed & {line.partition(">")[0] for line in project["dependencies"]}


def test_compare_plots_and_losses_run_and_training_names_its_extra(tmp_path):
    code = """
import cka_probe as cp, torch
from torch import nn

def network():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

batches = [torch.randn(16, 8) for _ in range(3)]
result = cp.compare(network(), network(), batches, progress=False)
result.save("result.npz")
result.plot().figure.savefig("result.png")

import cka_probe.distill as distillation
from cka_probe.distill import CosineDecay, DistillationResult, FeatureCKALoss, LogitCKALoss, RCKALoss, baselines, dense
from cka_probe.distill import losses, models, taps
loss = LogitCKALoss()(torch.randn(16, 3, requires_grad=True), torch.randn(16, 3))
assert loss.isfinite()
models.build("resnet8")
assert not hidden & set(sys.modules)

def message(function, *arguments):
    try:
        function(*arguments)
    except ModuleNotFoundError as error:
        print(error)

net = network()
message(distillation.distill, None, net, batches, batches)
message(distillation.distill_detector, None, net, batches)
message(distillation.distill_segmenter, None, net, batches)
message(dense.average_precision, net, batches)
message(dense.mean_iou, net, batches)
message(dense.make_scenes, "scenes")
message(distillation.digits)
message(lambda: distillation.Recipe)
"""
    done = bare(f"import os; os.chdir({str(tmp_path)!r}); import matplotlib; matplotlib.use('agg')\n" + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{what} needs {library}, which is not installed: pip install 'cka-probe[{extra}]'"
        for what, library, extra in (
            ("distill()", "accelerate", "distill"),
            ("distill_detector()", "accelerate", "dense"),
            ("distill_segmenter()", "accelerate", "distill"),
            ("average_precision()", "torchmetrics", "dense"),
            ("mean_iou()", "torchmetrics", "distill"),
            ("make_scenes()", "scikit-learn", "distill"),
            ("digits()", "scikit-learn", "distill"),
            ("A recipe", "pydantic", "distill"),
        )
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.npz", "result.png"]


def test_detectors_alone_need_pycocotools():
    code = "import cka_probe.distill as d\ntry: d.distill_detector(None, None, [])\nexcept ImportError as e: print(e)"
    done = bare(code, hidden=["pycocotools"])
    expected = "distill_detector() needs pycocotools, which is not installed: pip install 'cka-probe[dense]'\n"
    assert done.stdout == expected, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "distill-table"),
        (["compare", "resnet8", "--data", "noise", "--samples", 16, "--image-size", 8, "--layers", "fc"], 0, "resnet8"),
        (["compare", "resnet8"], 2, "Error: --data digits needs scikit-learn, which"),
        (["distill", ROOT / "examples" / "recipes" / "digits.toml"], 2, "Error: A recipe needs tomli-w, which"),
        (["distill-table", ROOT / "examples" / "recipes" / "digits.toml"], 2, "Error: A recipe needs tomli-w, which"),
    ],
)
def test_command_line(arguments, code, message):
    # Recent versions of typer need pydantic themselves.
    hidden = [module for module in MODULES.values() if module != "pydantic"]
    done = bare("from cka_probe.cli import main; main(sys.argv[2:])", *arguments, hidden=hidden)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    if code == 2:
        assert done.stderr.endswith("which is not installed: pip install 'cka-probe[distill]'\n")
        assert done.stderr.count("\n") == 1
