"""The house of DESIGN.md, checked by reading the sources: who may import whom, what is public, what stays unloaded."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(importlib.import_module("cka_probe").__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("capture", "estimators", "similarity", "plotting", "distill", "cli")

# Of the package itself; every room may import from itself. Modules beside the rooms (comparison, streaming, ...) join
# capture and estimators to a SimilarityMatrix.
MAY_IMPORT = {
    "estimators": set(),
    "similarity": {"plotting"},  # SimilarityMatrix.plot, inside the method
    "plotting": {"similarity"},
    "capture": {"estimators"},
}
MAY_NOT_IMPORT = {
    "distill": {"plotting", "cli"},
    "sources": {"plotting", "cli"},  # finds models by name, those of distill too
    "cli": set(),
}
BESIDE_THE_ROOMS = {"distill", "plotting", "cli"}
FORBIDDEN_LIBRARIES = {
    "estimators": {"torch", "torchvision", "cupy", "matplotlib", "seaborn", "pandas", "plotly"},
    "similarity": {"torch", "torchvision", "cupy", "array_api_compat"},
    "plotting": {"torch", "torchvision", "cupy", "array_api_compat"},
    "capture": {"matplotlib", "seaborn", "pandas"},
}
NAMELESS = {"utils", "util", "helpers", "common", "base", "manager", "misc"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Every module that a source imports when it runs: absolute name, whether inside a function, line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    package = ["cka_probe", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        above = []
        while (above and above[-1] in parents) or (not above and node in parents):
            above.append(parents[above[-1] if above else node])
        if any(isinstance(a, ast.If) and "TYPE_CHECKING" in ast.dump(a.test) for a in above):
            continue
        inside = any(isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef) for a in above)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, inside, node.lineno
            continue
        prefix = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*prefix, *([node.module] if node.module else [])])
        yield module, inside, node.lineno
        if module == "cka_probe":
            for alias in node.names:
                yield f"cka_probe.{alias.name}", inside, node.lineno


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_up_the_list(path):
    here = room(path)
    for module, inside, line in imports(path):
        parts = module.split(".")
        if parts[0] != "cka_probe" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        if here in MAY_IMPORT:
            allowed = parts[1] in MAY_IMPORT[here]
        else:
            allowed = parts[1] not in MAY_NOT_IMPORT.get(here, BESIDE_THE_ROOMS)
        assert allowed, f"{name(path)}:{line}: {here} may not import {module}"
        if here == "similarity" and parts[1] == "plotting":
            assert inside, f"{name(path)}:{line}: plotting only inside the method that draws"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_libraries_stay_in_their_rooms(path):
    forbidden = FORBIDDEN_LIBRARIES.get(room(path), set())
    for module, _, line in imports(path):
        assert module.split(".")[0] not in forbidden, f"{name(path)}:{line}: {room(path)} may not import {module}"


def test_the_reader_of_imports_sees_all_forms(tmp_path, monkeypatch):
    """The checks above would pass on everything if this parser saw nothing."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "plotting").mkdir()
    source = tmp_path / "plotting" / "x.py"
    source.write_text(
        "import torch.nn\nfrom ..similarity import S\nfrom . import scale\nfrom cka_probe import capture\n"
        "def f():\n    from cka_probe.distill import losses\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cupy\n"
    )
    assert [(m, inside) for m, inside, _ in imports(source)] == [
        ("torch.nn", False),
        ("cka_probe.similarity", False),
        ("cka_probe.plotting", False),
        ("cka_probe", False),
        ("cka_probe.capture", False),
        ("typing", False),
        ("cka_probe.distill", True),
    ]


def test_rooms_exist_and_modules_say_what_they_hold():
    for one in ROOMS:
        assert (PACKAGE / one).is_dir() or (PACKAGE / f"{one}.py").is_file(), one
    assert not [name(p) for p in SOURCES if p.stem in NAMELESS]


@pytest.mark.parametrize("package", [p for p in SOURCES if p.name == "__init__.py" and p.parent != PACKAGE], ids=name)
def test_no_module_bears_a_name_that_its_package_exports(package):
    if room(package) == "cli":
        return  # its functions are commands, one in each module, and nobody imports the modules
    imported = importlib.import_module(_module(package))
    exported = {n for n in getattr(imported, "__all__", ()) if not isinstance(getattr(imported, n), ModuleType)}
    modules = {p.stem for p in package.parent.glob("*.py")}
    # DESIGN.md names both the module and the function; import what the module holds by `from ... hsic import`.
    assert exported & modules <= {"hsic"}


def _module(path: Path) -> str:
    return ".".join(["cka_probe", *path.relative_to(PACKAGE).parts[:-1]])


def _imported_names(source: Path) -> set[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def _all(source: Path) -> list[str]:
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{source} has no __all__")


class TestPublicNames:
    def test_top_level_stub(self):
        stub = PACKAGE / "__init__.pyi"
        names = _all(stub)
        assert sorted(names) == sorted(_imported_names(stub) - {"annotations"})
        assert len(names) == len(set(names))
        package = importlib.import_module("cka_probe")
        assert set(names) <= set(dir(package))
        for public in names:
            assert getattr(package, public) is not None, public

    def test_estimators(self):
        source = PACKAGE / "estimators" / "__init__.py"
        names = _all(source)
        assert sorted(names) == sorted(_imported_names(source))
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "estimators"], ids=name)
    def test_each_public_function_of_the_estimators_is_documented(self, path):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name(path)}: {node.name}"


@pytest.mark.parametrize(
    ("module", "unloaded"),
    [
        ("cka_probe", ("torch", "scipy", "matplotlib", "pandas", "cupy")),
        ("cka_probe.estimators", ("torch", "matplotlib", "pandas", "cupy")),
        ("cka_probe.similarity", ("torch", "matplotlib", "cupy")),
        ("cka_probe.plotting", ("torch", "cupy")),
        ("cka_probe.cli", ("torch", "matplotlib", "pandas", "transformers")),
    ],
)
def test_heavy_libraries_wait_until_needed(module, unloaded):
    code = f"import sys, {module}; print([m for m in {unloaded!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
