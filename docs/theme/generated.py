"""MkDocs hook: pages made from the code itself. They are the command line, the gallery of figures, and the changes."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["changes", "commands", "gallery", "on_files"]

ROOT = Path(__file__).parents[2]


def commands() -> str:
    """Every command with its arguments and options."""
    from typer.main import get_command

    from cka_probe.cli import app

    program = get_command(app)
    parts = ["# Command line", "Every option of every command. `cka-probe COMMAND --help` prints the same."]
    for name, command in _leaves(program):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["cka-probe", name, "[OPTIONS]", *map(_shown, arguments)])
        parts += [f"## `{name}`", f"```sh\n{usage}\n```", *_paragraphs(command.help or "")]
        rows = [
            f"| {', '.join(f'`{o}`' for o in (*p.opts, *p.secondary_opts)) or p.name} | {_plain(getattr(p, 'help', '') or '')} |"  # noqa: E501
            for p in command.params
        ]
        parts.append("\n".join(["| argument or option | what it does |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Commands with their whole names; those of a group too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


def gallery() -> str:
    """Every figure with its script."""
    parts = [
        "# Gallery",
        "Every figure of the project and the code that draws it. [What the figures show](pictures/README.md) says "
        "which claim each one tests, and what was found. `python -m figures NAME` draws one again.",
    ]
    for picture in sorted((ROOT / "figures").glob("*.png")):
        title = picture.stem.replace("_", " ").capitalize()
        title = re.sub(r"\b(cka|mmd)\b", lambda word: word[0].upper(), title, flags=re.IGNORECASE)
        parts += [f"## {title}", f"![{title}](pictures/{picture.name})"]
        script = next((p for p in _scripts(picture.stem)), None)
        if script is not None:
            code = script.read_text(encoding="utf-8")
            summary = (ast.get_docstring(ast.parse(code)) or "").split("\n\n")[0]
            block = "\n".join(f"    {line}" for line in f"```python\n{code}```".split("\n"))
            parts += [" ".join(summary.split()), f'??? note "figures/{script.name}"\n\n{block}']
    return "\n\n".join(parts) + "\n"


def changes() -> str:
    """CHANGELOG.md; its links to files of docs/ become links to pages."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    for path, make in (("commands.md", commands), ("gallery.md", gallery), ("changes.md", changes)):
        files.append(File.generated(config, path, content=make()))
    return files


def _scripts(name: str) -> Iterator[Path]:
    """Scripts that draw a figure: the one of its name, or the one that names the picture."""
    own = ROOT / "figures" / f"{name}.py"
    if own.exists():
        yield own
    for script in sorted((ROOT / "figures").glob("*.py")):
        if re.search(rf"[\"']{name}[\"'.]", script.read_text(encoding="utf-8")):
            yield script


def _shown(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a help text; lines that are commands become a code block."""
    for paragraph in inspect.cleandoc(text).replace("\b", "").split("\n\n"):
        lines = paragraph.strip().splitlines()
        shell = [line.strip() for line in lines if line.strip().startswith("cka-probe ")]
        prose = " ".join(line.strip() for line in lines if line.strip() not in shell)
        if prose:
            yield prose
        if shell:
            yield "```sh\n" + "\n".join(shell) + "\n```"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
