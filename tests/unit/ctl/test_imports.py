"""What a short command loads: its start is most of its time."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lighter.ctl.cli

# Each costs milliseconds in every command, or is another command's.
COSTLY = {
    "asyncio",
    "csv",
    "dataclasses",
    "importlib.metadata",
    "lighter.ctl.process",
    "lighter.ctl.run",
    "lighter.ctl.task",
    "logging",
    "subprocess",
}
# The only modules that may load click: for help and mistakes, and for questions.
OF_CLICK = {"clicked.py", "asking.py"}


def test_commands_are_declared_in_our_grammar_and_not_to_click() -> None:
    folder = Path(lighter.ctl.cli.__file__).parent
    for file in folder.rglob("*.py"):
        if file.name not in OF_CLICK:
            roots = {name.split(".")[0] for name in imported_by(ast.parse(file.read_text()))}
            assert "click" not in roots, f"{file}: declare it with lighter.ctl.grammar"


def imported_by(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module


def test_version_loads_little() -> None:
    script = (
        "import sys, lighter.ctl.__main__, lighter.ctl.connect, lighter.ctl.system\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    loaded = set(done.stdout.split())
    assert "lighter.ctl.connect" in loaded
    assert not COSTLY & loaded
