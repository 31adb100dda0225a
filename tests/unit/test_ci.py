"""How a fresh machine is set up: which Python the virtual environment is made with."""

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PYTHON = CHECKOUT / ".ci" / "python"
NEEDS_THE_MACHINE = re.compile(
    r"^from tests.*(integration\.conftest|\bcensus\b|\bLighterd\b)", re.MULTILINE
)
NEW, OLD = "#!/bin/sh\nexit 0\n", "#!/bin/sh\nexit 1\n"


def chosen(directory: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PYTHON, directory], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({"python3": NEW}, "python3"),
        ({"python3": OLD, "python3.12": NEW}, "python3.12"),  # CentOS Stream 9
        ({"python3.11": OLD, "python3": NEW}, "python3"),  # one without venv
        ({"python3.13": NEW, "python3.12": NEW, "python3.11": NEW}, "python3.11"),
    ],
    ids=["one", "an old one beside", "without venv", "many"],
)
def test_the_first_that_is_new_enough(tmp_path: Path, there: dict[str, str], wanted: str) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    assert chosen(tmp_path).stdout == f"{tmp_path}/{wanted}\n"


def test_none_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text(OLD)
    (tmp_path / "python3").chmod(0o755)
    none = chosen(tmp_path)
    assert (none.returncode, none.stdout) == (1, "")
    assert "make setup" in none.stderr


def test_it_is_asked_when_the_environment_is_made(tmp_path: Path) -> None:
    """Not when make reads its file: `make test` installs it first."""
    (tmp_path / "pyproject.toml").touch()
    makefile = PYTHON.parents[1] / "Makefile"
    for folder in ("daemon", "shim", "proto", "ctl"):
        (tmp_path / folder).mkdir()
    steps = subprocess.run(
        ["make", "-n", "-f", makefile, ".venv/dependencies"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python=$(.ci/python); $python -m venv .venv" in steps.stdout


def test_each_test_is_in_one_session_of_make_test() -> None:
    """Nor is any that looks for what the machine has beside others."""
    show = "shown: ; @echo $(EARLY) : $(BESIDE) : $(LATE)"
    shown = subprocess.run(
        ["make", "-s", "--no-print-directory", "--eval", show, "shown"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sessions = [set(map(Path, part.split())) for part in shown.split(":")]
    for path in (CHECKOUT / "tests").rglob("test_*.py"):
        file = path.relative_to(CHECKOUT)
        its = [{file, *file.parents} & places for places in sessions]
        assert len(list(filter(None, its))) == 1, file
        if its[0] or its[1]:
            assert not NEEDS_THE_MACHINE.search(path.read_text()), file
