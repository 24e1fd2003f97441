"""The layout of the package, checked by reading its sources: who may import whom, what is public, what stays unloaded.

ROOMS is the table to read and to change. Each room is a folder of cka_probe with one job.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

PACKAGE = Path(importlib.import_module("cka_probe").__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# room: the rooms and modules that it may import. Every room may import from itself, and from the modules beside the
# rooms: they write, read, identify and show progress.
ROOMS = {
    # Compare: data flows down this list.
    "capture": [],
    "estimators": ["capture/extras", "capture/nearest"],
    "similarity": ["plotting", "capture/nearest"],  # plotting only inside functions: SimilarityMatrix.plot
    "comparison": ["capture", "estimators", "similarity", "answers"],
    "atlas": ["capture/extras", "capture/nearest", "capture/notes", "comparison", "estimators", "similarity"],
    # Distill.
    "distill/losses": ["estimators", "capture/pooling", "capture/trees"],  # padding is left out as `compare` does it
    "distill/baselines": ["estimators", "distill/losses"],
    "distill/taps": ["capture", "distill/losses/contract"],
    "distill/models": ["capture"],
    "distill/data": ["capture/extras", "capture/nearest"],
    "distill/training": [
        "capture",
        "comparison",  # diagnostics: the similarity of teacher and student while training
        "similarity",
        "distill/losses/contract",
        "distill/losses/weight_schedules",  # the run tells a loss how far it is
        "distill/taps",
    ],
    "distill/dense": ["capture", "distill/losses", "distill/taps", "distill/data", "distill/training"],
    "distill/recipes": ["capture", "estimators/kernels", "similarity/text", "distill"],
    # Show.
    "plotting": ["similarity", "capture/extras", "capture/nearest"],
    "cli": ["capture", "estimators", "similarity", "comparison", "plotting", "distill"],
}

# Modules beside the rooms.
LOOSE = {
    "__init__.py",
    "answers.py",
    "atomic_write.py",
    "distill/__init__.py",
    "identity.py",
    "metrics.py",
    "progress_bar.py",
    "safe_read.py",
}

# room: libraries that it must not import.
FORBIDDEN_LIBRARIES = {
    "estimators": {"torch", "torchvision", "cupy", "matplotlib", "seaborn", "pandas", "plotly"},
    "similarity": {"torch", "torchvision", "cupy", "array_api_compat"},
    "plotting": {"torch", "torchvision", "cupy", "array_api_compat"},
    "capture": {"matplotlib", "seaborn", "pandas"},
}

# The only circle of files: SimilarityMatrix.plot draws, and plotting takes a SimilarityMatrix.
CIRCLE = {"similarity", "plotting"}

NAMELESS = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
LONGEST = 400
"""Lines that a file may have."""


class Import(NamedTuple):
    """One imported module of a source: its dotted name, whether the import stands inside a function, the line."""

    module: str
    inside: bool
    line: int


def imports(path: Path) -> Iterator[Import]:
    """Every module that a source imports when it runs; imports for type checkers are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    package = ["cka_probe", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        above, parent = [], parents.get(node)
        while parent is not None:
            above.append(parent)
            parent = parents.get(parent)
        if any(isinstance(a, ast.If) and "TYPE_CHECKING" in ast.dump(a.test) for a in above):
            continue
        inside = any(isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef) for a in above)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, inside, node.lineno) for alias in node.names)
            continue
        prefix = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*prefix, *([node.module] if node.module else [])])
        for alias in node.names:
            # `from . import batches` names a module, `from .batches import join` a function in one.
            named = f"{module}.{alias.name}"
            yield Import(named if is_module(named) else module, inside, node.lineno)


def is_module(dotted: str) -> bool:
    """Whether a dotted name is a module or package of ours."""
    parts = dotted.split(".")
    place = PACKAGE.joinpath(*parts[1:])
    return parts[0] == "cka_probe" and (place.is_dir() or place.with_suffix(".py").is_file())


def place(dotted: str) -> str:
    """A module of ours as the table writes it: cka_probe.distill.losses.cka -> distill/losses/cka."""
    return "/".join(dotted.split(".")[1:])


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}/")


def room_of(path: Path) -> str | None:
    """The room of a source; None for the modules beside the rooms."""
    here = name(path).removesuffix(".py")
    return next((room for room in ROOMS if within(here, room)), None)


def dotted_name(path: Path) -> str:
    parts = ["cka_probe", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p)], ids=name)
def test_a_room_imports_only_what_the_table_allows(path):
    here = room_of(path)
    allowed = [here, "atomic_write", "identity", "progress_bar", "safe_read", *ROOMS[here]]
    for module, inside, line in imports(path):
        if module == "cka_probe" or not module.startswith("cka_probe."):
            continue
        target = place(module)
        assert any(within(target, one) for one in allowed), f"{name(path)}:{line}: {here} may not import {target}"
        if here == "similarity" and within(target, "plotting"):
            assert inside, f"{name(path)}:{line}: plotting only inside the function that draws"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_libraries_stay_in_their_rooms(path):
    forbidden = FORBIDDEN_LIBRARIES.get(room_of(path), set())
    for module, _, line in imports(path):
        assert module.split(".")[0] not in forbidden, f"{name(path)}:{line}: {room_of(path)} may not import {module}"


def test_the_reader_of_imports_sees_all_forms(tmp_path, monkeypatch):
    """The checks of this file would pass on everything if this parser saw nothing."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    for folder in ("plotting", "similarity", "capture", "distill/losses"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "plotting" / "scale.py").touch()
    source = tmp_path / "plotting" / "x.py"
    source.write_text(
        "import torch.nn\nfrom ..similarity import S\nfrom . import scale\nfrom cka_probe import capture\n"
        "def f():\n    from cka_probe.distill import losses\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cupy\n"
    )
    assert sorted((found.module, found.inside) for found in imports(source)) == [
        ("cka_probe.capture", False),
        ("cka_probe.distill.losses", True),
        ("cka_probe.plotting.scale", False),
        ("cka_probe.similarity", False),
        ("torch.nn", False),
        ("typing", False),
    ]


def test_every_file_is_in_a_room():
    assert {name(p) for p in SOURCES if room_of(p) is None} == LOOSE
    for room in ROOMS:
        assert (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file(), room
    assert not [name(p) for p in SOURCES if p.stem in NAMELESS]


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach each other, each with more than one module."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for target in arrows.get(todo.pop(), set()) - found:
                found.add(target)
                todo.append(target)
        return found

    reach = {module: reached(module) for module in arrows}
    groups = {frozenset(n for n in reach[m] if m in reach.get(n, set())) for m in arrows if m in reach[m]}
    return [set(group) for group in groups]


def test_no_circle_of_files_but_the_one_that_draws():
    modules = {dotted_name(path): path for path in SOURCES}
    arrows = {
        module: {found.module for found in imports(path) if found.module in modules and found.module != module}
        for module, path in modules.items()
    }
    for circle in circles(arrows):
        assert {module.split(".")[1] for module in circle} == CIRCLE, f"these files import each other: {sorted(circle)}"


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert circles({"a": {"b"}, "b": set()}) == []


@pytest.mark.parametrize("folder", ["cka_probe", "tests", "examples", "figures", "benchmarks"])
def test_files_are_short(folder):
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / folder).rglob("*.py")}
    assert {p.relative_to(ROOT).as_posix(): n for p, n in lengths.items() if n > LONGEST} == {}


@pytest.mark.parametrize("package", [p for p in SOURCES if p.name == "__init__.py" and p.parent != PACKAGE], ids=name)
def test_no_module_bears_a_name_that_its_package_exports(package):
    if room_of(package) == "cli":
        return  # its functions are commands, one in each module, and nobody imports the modules
    imported = importlib.import_module(dotted_name(package))
    exported = {n for n in getattr(imported, "__all__", ()) if not isinstance(getattr(imported, n), ModuleType)}
    modules = {p.stem for p in package.parent.glob("*.py")}
    # The function `hsic` stands in the module `hsic`: import what the module holds by `from ... hsic import`.
    assert exported & modules <= {"hsic"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name not in ("__init__.py", "__main__.py")], ids=name)
def test_public_names_are_listed_and_private_ones_stay_at_home(path):
    listed = _all(path)
    assert len(listed) == len(set(listed))
    module = importlib.import_module(dotted_name(path))
    assert [n for n in listed if not hasattr(module, n)] == []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("cka_probe")):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert private == [], f"{name(path)}:{node.lineno} imports a private name"
            assert node.level, f"{name(path)}:{node.lineno}: relative imports only"


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
    @pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("__init__.pyi")), ids=name)
    def test_stubs_hold_what_they_list(self, stub):
        names = _all(stub)
        assert sorted(names) == sorted(_imported_names(stub) - {"annotations"})
        assert len(names) == len(set(names))
        package = importlib.import_module(dotted_name(stub.with_suffix(".py")))
        assert set(names) <= set(dir(package))
        for public in names:
            assert getattr(package, public) is not None, public

    @pytest.mark.parametrize("room", ["estimators", "estimators/dataset", "estimators/measures", "comparison"])
    def test_packages_list_what_they_import(self, room):
        source = PACKAGE / room / "__init__.py"
        names = _all(source)
        assert sorted(names) == sorted(_imported_names(source))
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p) == "estimators"], ids=name)
    def test_each_public_function_of_the_estimators_is_documented(self, path):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name(path)}: {node.name}"


# Notes of the authors that are not in the repository.
UNSEEN = r"\b(MA" r"TH|(MA" r"TH|PAPER|DESIGN|HOUSE|STYLE)\.md)\b"


def _texts() -> Iterator[tuple[Path, str]]:
    for folder in ("cka_probe", "tests", "examples", "figures", "benchmarks", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".pyi", ".md", ".toml") and path != Path(__file__):
                yield path, path.read_text(encoding="utf-8")
    for file in ("README.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml", "pyproject.toml", "CITATION.cff"):
        yield ROOT / file, (ROOT / file).read_text(encoding="utf-8")


def test_sentences_cite_only_what_a_reader_has():
    found = [f"{path}: {line}" for path, text in _texts() for line in text.splitlines() if re.search(UNSEEN, line)]
    assert found == []


def test_distill_has_one_spelling():
    wrong = re.compile(r"disti[l](?!l|bert)", re.IGNORECASE)  # DistilBERT is a name
    found = [f"{path}: {line}" for path, text in _texts() for line in text.splitlines() if wrong.search(line)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "unloaded"),
    [
        ("cka_probe", ("torch", "scipy", "matplotlib", "pandas", "cupy")),
        ("cka_probe.estimators", ("torch", "matplotlib", "pandas", "cupy")),
        ("cka_probe.similarity", ("torch", "matplotlib", "cupy")),
        ("cka_probe.plotting", ("torch", "cupy")),
        ("cka_probe.capture.nearest", ("torch", "numpy")),
        ("cka_probe.distill.recipes.recipe", ("torch", "matplotlib")),
        ("cka_probe.cli", ("torch", "matplotlib", "pandas", "transformers")),
    ],
)
def test_heavy_libraries_wait_until_needed(module, unloaded):
    code = f"import sys, {module}; print([m for m in {unloaded!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_map_names_every_module_and_its_tests():
    """docs/code.md: one table a room, with the module, its job and the files that test it."""
    text = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    parts = re.split(r"^### `(.+)/`$", text, flags=re.MULTILINE)[1:]
    mapped = {}
    for room, table in zip(parts[::2], parts[1::2], strict=True):
        for module, job, tests in re.findall(r"^\| `(\w+\.py)` \| (.+) \| (.+) \|$", table, flags=re.MULTILINE):
            assert job
            mapped[f"{room}/{module}"] = re.findall(r"`([^`]+)`", tests)
    modules = {name(p) for p in SOURCES if p.name != "__init__.py"} - LOOSE
    assert set(mapped) == modules
    assert [m for m, tests in mapped.items() if not tests] == []
    assert [t for tests in mapped.values() for t in tests if not (ROOT / t).is_file()] == []
