"""In CI a test that is skipped fails, with the real conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.test_rows import CHECKOUT

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no program here")
def test_of_a_program(): pass

def test_of_a_kernel():
    pytest.skip("no such file here")

def test_of_a_goal():
    pytest.xfail("not reached")

def test_of_all(): pass
"""


def test_what_is_skipped_fails_in_ci_and_says_why(tmp_path: Path) -> None:
    for file in (CHECKOUT / "tests").glob("*.py"):
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests" / file.name).write_text(file.read_text())
    (tmp_path / "tests/BUDGET").touch()
    (tmp_path / "tests/test_x.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  root\n")
    argv = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "tests"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "CENSUS_EXCLUSIVE": "", "CI": "true"}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed, 1 xfailed, 1 error in" in done.stdout
    for why in ("no program here", "no such file here"):
        assert why in done.stdout
