"""The message for a library that is not installed."""

import subprocess
import sys
from types import ModuleType

import pytest

from cka_probe.capture.extras import require


def test_an_installed_library_passes_and_is_not_imported():
    code = "import sys; from cka_probe.capture.extras import require; require('sklearn', 'distill', 'digits()')"
    done = subprocess.run([sys.executable, "-c", f"{code}; assert not {{'sklearn', 'torch'}} & set(sys.modules)"])
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("module", "name"), [("sklearn", "scikit-learn"), ("tomli_w", "tomli-w"), ("cupy", "CuPy"), ("timm", "timm")]
)
def test_a_missing_library_is_named_with_its_install_line(monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"^It needs {name}, which .*: pip install 'cka-probe\[some\]'$"
    ) as got:
        require(module, "some", "It")
    assert got.value.name == module


def test_a_library_without_an_extra_is_installed_by_its_own_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ModuleNotFoundError, match=r"^It needs lightning, which .*: pip install lightning$"):
        require("lightning", None, "It")


def test_a_module_without_a_spec_counts_as_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    require("cupy", "cuda13", 'backend="cupy"')
