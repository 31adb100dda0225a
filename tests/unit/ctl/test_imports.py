"""What short commands load: their start is most of their time, so each module is asked for."""

import ast
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lighter.ctl.cli
from tests.fakes.manager import Ask, FakeManager, FakeProcess
from tests.unit.ctl.test_verbs import TASK, VERSION, playing

# The only modules that may load click: for help and mistakes, and for questions.
OF_CLICK = {"clicked.py", "asking.py"}

# As the package's launcher starts it: isolated, and without `site`.
SITE = Path(lighter.ctl.cli.__file__).parent.parent.parent
LAUNCH = (
    f"import sys; sys.path.insert(0, {str(SITE)!r}); from lighter.ctl.__main__ import main; main()"
)

PROTO = (
    *("calls", "codec", "compat", "dealer", "errors", "light", "packing", "socketpath"),
    *("version", "zmtp"),
)
EVERY_COMMAND = {
    *("lighter", "lighter.ctl", "lighter.ctl.__main__", "lighter.ctl.cli", "lighter.ctl.grammar"),
    *("lighter.ctl.reading", "lighter.ctl.connect", "lighter.ctl.resume", "lighter.proto"),
    *(f"lighter.proto.{name}" for name in PROTO),
}
FLAGS = {
    f"lighter.ctl.flags.{name}"
    for name in (
        *("devices", "filesystem", "health", "log", "namespaces", "network", "process", "record"),
        *("resources", "restart", "runtime", "security", "volume"),
    )
}
ATTACHED = {f"lighter.ctl.{name}" for name in ("process", "pump", "stdio", "undo")}
# Beside the verb's own module, which is loaded by name: importtime does not tell of that.
OF = {
    "version": {"lighter.ctl.output"},
    "tasks ls": {"lighter.ctl.output"},
    "ps": {"lighter.ctl.output", "lighter.proto.names"},
    "run --rm busybox c1 true": {
        *("lighter.ctl.definition", "lighter.ctl.flags", *FLAGS, *ATTACHED),
    },
    "exec c1 true": {"lighter.ctl.resolve", *ATTACHED},
    "containers rm c1": {"lighter.ctl.output", "lighter.ctl.resolve"},
}
# Each of these costs milliseconds. `typing`, `re`, `socket` and `signal` (the last two by `enum`)
# are what most of the standard library would bring.
COSTLY = {
    *("argparse", "asyncio", "click", "collections", "contextlib", "csv", "dataclasses"),
    *("datetime", "enum", "functools", "hashlib", "importlib", "importlib.metadata", "inspect"),
    *("json", "logging", "msgpack", "operator", "os", "pathlib", "re", "selectors", "signal"),
    *("socket", "stat", "struct"),
    *("subprocess", "tempfile", "termios", "threading", "traceback", "typing", "warnings", "zmq"),
}


def playing_exec(manager: FakeManager) -> None:
    """Answers of a process that ends at once."""

    def execute(ask: Ask) -> Any:
        process = FakeProcess(ask.body)

        def live() -> None:
            process.end()
            manager.asked("tasks.wait").reply({"exit_status": 0, "exited_at": 1, "cause": ""})

        threading.Thread(target=live).start()
        return {"exec_id": "e1"}

    manager.on("tasks.exec", execute)


@pytest.mark.parametrize("verb", OF)
def test_a_short_command_loads_what_it_needs_alone(
    manager: FakeManager, environment: dict[str, str], verb: str
) -> None:
    playing(manager)
    playing_exec(manager)
    manager.on("version.get", VERSION)
    manager.on("tasks.list", {"tasks": [TASK]})
    manager.on("containers.delete", {})
    loaded = imported(verb.split(), environment)
    assert {name for name in loaded if name.split(".")[0] == "lighter"} == EVERY_COMMAND | OF[verb]
    assert not COSTLY & loaded


def imported(args: list[str], environment: dict[str, str]) -> set[str]:
    """All modules that a command has loaded when it is done, beside the interpreter's own."""
    done = subprocess.run(
        [sys.executable, "-IS", "-X", "importtime", "-c", LAUNCH, *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in done.stderr.splitlines() if line not in lines]
    assert done.returncode == 0, said
    return {line.rpartition("|")[2].strip() for line in lines}


def test_the_environment_is_what_os_says_it_is() -> None:
    """Which is not loaded for it."""
    code = (
        f"import sys; sys.path.insert(0, {str(SITE)!r}); from lighter.ctl.reading import variable\n"
        "names = 'SET', 'EMPTY', 'BYTES', 'ABSENT'\n"
        "said = [variable(name) for name in names]\n"
        "assert 'os' not in sys.modules\n"
        "import os\n"
        "assert said == [os.environ.get(name, '') for name in names], said\n"
        "os.environ['SET'] = 'later'\n"
        "print(ascii(said), variable('SET'))"
    )
    environ = {b"SET": "wört".encode(), b"EMPTY": b"", b"BYTES": b"a\xff"}
    argv = [sys.executable, "-IS", "-X", "utf8", "-c", code]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=20)
    assert done.stdout == "['w\\xf6rt', '', 'a\\udcff', ''] later\n", done.stderr


def test_help_is_what_loads_click(environment: dict[str, str]) -> None:
    assert "click" in imported(["run", "--help"], environment)


def test_commands_are_declared_in_our_grammar_and_not_to_click() -> None:
    for file in Path(lighter.ctl.cli.__file__).parent.rglob("*.py"):
        if file.name not in OF_CLICK:
            roots = {name.split(".")[0] for name in named_by(ast.parse(file.read_text()))}
            assert "click" not in roots, f"{file}: declare it with lighter.ctl.grammar"


def named_by(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module
