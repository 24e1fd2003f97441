"""Shell completion: the command that the installed script runs when the user presses tab."""

import subprocess
import sys

import pytest

SCRIPTS = {"bash": "complete_bash", "zsh": "complete_zsh", "fish": "complete_fish"}


def complete(shell, words):
    """The completions after ``words``, asked for as each shell's script does."""
    line = " ".join(words)
    asked = {"_CKA_PROBE_COMPLETE": SCRIPTS[shell], "_TYPER_COMPLETE_ARGS": line}
    if shell == "bash":
        asked |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        asked |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "from cka_probe.cli import main; main([])"
    program = f"import os, sys; os.environ.update({asked!r}); sys.argv = ['cka-probe']; {code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_commands_are_offered(shell):
    done = complete(shell, ["cka-probe", "dis"])
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
    assert "distill-table" in done.stdout
    assert "compare" not in done.stdout
