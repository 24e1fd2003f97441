"""Every Python block of docs/ runs as it is written, page by page, in an empty folder (README.md: test_readme.py)."""

import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import matplotlib as mpl
import pytest

import cka_probe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Pages that the hooks in docs/theme make when the site is built, which checks the links to them.
GENERATED = {"changes.md", "commands.md", "gallery.md", "reference/index.md"}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES[1:] if blocks(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # no thread that outlives the test
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page)):
        block = re.sub(r"epochs=\d+", "epochs=1", block)  # short here; the page shows the real number
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    import matplotlib.pyplot as plt

    plt.close("all")


def test_links_and_pictures_are_there():
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)[)#]", prose):
            if target.removeprefix("../") in GENERATED:
                continue
            assert (page.parent / target).exists(), f"{page.name} points to {target}, which is not there"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


def hook_of_the_site(name: str):
    """A module of docs/theme, which is no package."""
    spec = importlib.util.spec_from_file_location(f"{name}_hook", ROOT / "docs" / "theme" / f"{name}.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook


def test_every_public_name_has_a_page_in_the_reference():
    hook = hook_of_the_site("reference")
    pages = dict(hook.pages())
    # Rooms whose names users import from cka_probe itself.
    inner = {"cka_probe.capture", "cka_probe.comparison", "cka_probe.similarity", "cka_probe.cli"}
    packages = {
        module.name
        for module in pkgutil.walk_packages(cka_probe.__path__, "cka_probe.")
        if module.ispkg and not any(module.name.startswith(room) for room in inner)
    }
    inside = {"cka_probe.estimators.dataset", "cka_probe.estimators.measures"}  # named in cka_probe.estimators
    assert set(hook.PACKAGES) >= {"cka_probe", "cka_probe.distill.data", *packages} - inside
    for package in hook.PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value):
                assert value.__name__ in hook.PACKAGES
                continue
            assert hook.defined_at(package, name) in pages[f"reference/{package}.{name}.md"]
            if inspect.isclass(value) or inspect.isroutine(value):
                assert inspect.getdoc(value), f"{package}.{name} has no docstring"


def test_generated_pages_show_every_command_and_every_figure():
    hook = hook_of_the_site("generated")
    commands, gallery = hook.commands(), hook.gallery()
    for name in ("compare", "distill", "distill-table", "info", "report"):
        assert f"## `{name}`" in commands
    assert "| `--pooling` |" in commands
    for picture in (ROOT / "figures").glob("*.png"):
        assert f"(pictures/{picture.name})" in gallery
    assert "def draw" in gallery or "import matplotlib" in gallery  # the code stands beside the pictures


def test_links_of_the_page_of_changes_lead_to_pages():
    for target in re.findall(r"\]\(([^)#:]+)[)#]", hook_of_the_site("generated").changes()):
        assert target in GENERATED or (ROOT / "docs" / target).is_file(), target


def test_the_reference_understands_every_docstring(caplog):
    """The site is built with --strict: a parameter in a docstring that the signature does not have stops it."""
    griffe = pytest.importorskip("griffe")
    package = griffe.load("cka_probe", docstring_parser="numpy", submodules=True, search_paths=[ROOT])

    def read(item):
        assert item.docstring is None or item.docstring.parsed is not None
        for member in item.members.values():
            if not member.is_alias:
                read(member)

    read(package)
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("griffe")]
