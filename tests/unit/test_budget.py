"""tests/BUDGET is whole and within bounds, and a folder that takes longer fails its session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import budget
from tests.unit.test_rows import CHECKOUT, folders_of_make_test

BUDGET = budget.read(budget.FILE.read_text())


def test_the_budget_is_of_all_folders_and_at_most_75_minutes() -> None:
    assert folders_of_make_test() <= BUDGET.keys()
    assert sum(BUDGET.values()) <= budget.MOST_S


def test_what_takes_longer_is_told() -> None:
    spent = budget.Spent({"a": 10, "b": 10})
    for _ in range(4):
        spent.add("tests/a/test_x.py::test_y", 4.9)
        spent.add("tests/b/deep/test_x.py::test_y", 5.25)
        spent.add("tests/c/test_x.py::test_y", 1000)
        spent.add("tests/test_x.py::test_y", 1000)
    assert spent.over() == ["tests/b took 21 s, tests/BUDGET gives it 10"]


def test_all_tests_together_have_a_limit_too() -> None:
    spent = budget.Spent({"a": 10})
    spent.add("tests/a/test_x.py::test_y", 15)
    assert spent.over(1.5 * budget.MOST_S) == [], "on a slow day"
    assert spent.over(1.5 * budget.MOST_S + 1) == ["all tests took 6751 s, they have 4500"]


def test_what_make_did_before_is_told(tmp_path: Path) -> None:
    look = "from tests.budget import before_s; print(before_s())"
    (tmp_path / "Makefile").write_text(f"test:\n\t@{sys.executable} -c '{look}'\n")
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        ["make", "-s", "-C", tmp_path, "test"], env=environ, capture_output=True, text=True
    )
    assert float(done.stdout) >= 0, done.stderr


@pytest.mark.parametrize(("exclusive", "code"), [("1", 1), ("", 0)])
def test_a_session_over_its_budget_fails_where_nothing_else_runs(
    tmp_path: Path, exclusive: str, code: int
) -> None:
    """With the real conftest.py, and a budget of nothing for a folder with one test."""
    folder = tmp_path / "tests/small"
    folder.mkdir(parents=True)
    for file in (CHECKOUT / "tests").glob("*.py"):
        (tmp_path / "tests" / file.name).write_text(file.read_text())
    (tmp_path / "tests/BUDGET").write_text("small 0\n")
    (folder / "test_x.py").write_text("def test_x(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  root\n")
    argv = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "tests"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "CENSUS_EXCLUSIVE": exclusive}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("tests/BUDGET gives it 0" in done.stdout) == bool(code)
