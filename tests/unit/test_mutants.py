"""tests/mutants.toml is true: each guard stands in its file once, each row's test is there."""

import ast
from pathlib import Path

import pytest

from tests.unit.test_rows import CHECKOUT, TESTS, program

mutants = program("mutants")
ALL = mutants.read_mutants(CHECKOUT)


# (row, file::test) of all that name the row they hold.
HELD = {(row, f"{test.file}::{test.name}") for test in TESTS for row in test.rows}


@pytest.mark.parametrize("mutant", ALL, ids=[f"{each.row} {each.file}" for each in ALL])
def test_a_guard_is_where_it_is_said_to_be(mutant: "mutants.Mutant") -> None:
    source = (CHECKOUT / mutant.file).read_text()
    without = mutant.switched_off(source)
    assert without != source
    ast.parse(without, mutant.file)
    assert (mutant.row, mutant.test.partition("[")[0]) in HELD  # of its parameters one, or all


def test_a_guard_that_has_gone_or_is_there_twice_is_told(tmp_path: Path) -> None:
    mutant = mutants.Mutant("F01", "x.py", "if a:\n", "if False:\n", "")
    assert mutant.switched_off("b\nif a:\n    c\n") == "b\nif False:\n    c\n"
    for source in ("if b:\n", "if a:\n    pass\nif a:\n    pass\n"):
        with pytest.raises(ValueError, match=r"F01: x\.py has [02] times"):
            mutant.switched_off(source)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("", "green"),
        ("<skipped/>", "green"),
        ('<failure message="assert 1 == 2"/>', "failed"),
        ('<failure message="Failed: Timeout (&gt;120.0s) from pytest-timeout."/>', "hangs"),
        ('<error message="failed on setup with &quot;OSError&quot;"/>', "broken"),
        ('<failure message="assert False"/><error message="failed on teardown"/>', "failed"),
    ],
)
def test_only_a_failure_of_the_tests_own_is_one(case: str, found: str) -> None:
    """A guard is not shown to be needed by a test that could not be set up, or hung."""
    suite = f'<testsuites><testsuite><testcase name="t">{case}</testcase></testsuite></testsuites>'
    assert mutants.verdict(suite) == found


def test_what_is_red_with_its_guard_on_is_told_by_its_name() -> None:
    cases = """
        <testcase classname="tests.unit.test_a" name="test_x[1-é]"><failure/></testcase>
        <testcase classname="tests.unit.test_a" name="test_x[2]"/>
        <testcase classname="tests.unit.test_a" name="test_y"/>
        <testcase classname="tests.grpc.test_b" name="test_z"><error/></testcase>
    """
    report = f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
    assert mutants.red_tests(report) == {
        "tests/unit/test_a.py::test_x",
        "tests/grpc/test_b.py::test_z",
    }
