"""Every row of tests/rows.toml has a test, every test's row is there, and the page tells both."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).parents[2]


def program(name: str) -> ModuleType:
    """A module of .ci, which is no package."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", CHECKOUT / f".ci/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rows = program("rows")
TABLE, TESTS = rows.read_rows(CHECKOUT), list(rows.find_tests(CHECKOUT))
ALL = [f"F{n:02}" for n in range(1, 81)] + [f"SEC-{n:02}" for n in range(1, 88)]


def test_the_table_is_whole_and_in_order() -> None:
    assert list(TABLE) == ALL
    for number, row in TABLE.items():
        assert row.when and row.then and "|" not in row.when + row.then, number


def folders_of_make_test() -> set[str]:
    named = re.search(r"^TESTS := (.*)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert named
    return set(named[1].split())


def test_every_row_has_a_test_that_make_test_runs() -> None:
    folders = folders_of_make_test()
    run = [test for test in TESTS if not test.soak and test.file.split("/")[1] in folders]
    held = {number for test in run for number in test.rows}
    # A power cut takes a machine, and those of tests/vm may have a target of their own.
    elsewhere = set() if "vm" in folders else {"F50"}
    assert not (without := TABLE.keys() - held - elsewhere), sorted(without)


def test_every_test_names_rows_that_are_there() -> None:
    for test in TESTS:
        assert test.rows <= TABLE.keys(), f"{test.file}::{test.name}"


def test_the_page_is_of_these_rows_and_tests() -> None:
    page = (CHECKOUT / rows.PAGE).read_text()
    made = rows.render(TABLE, TESTS)
    assert rows.without_results(page) == rows.without_results(made), "run `make reliability`"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("test_f51_a_failed_fsync", {"F51"}),
        ("test_f_61_500_layers_mount", {"F61"}),
        ("test_sec_36_wrong_bytes", {"SEC-36"}),
        ("test_sec37_no_spelling", {"SEC-37"}),
        ("test_f01_f03_the_manager_is_killed", {"F01", "F02", "F03"}),
        ("test_f23_to_f25_killed", {"F23", "F24", "F25"}),
        ("test_f_23_to_25_killed", {"F23", "F24", "F25"}),
        ("test_sec51_and_53_nothing", {"SEC-51", "SEC-53"}),
        ("test_sec_20_and_22_damaged", {"SEC-20", "SEC-22"}),
        ("test_sec_64_f77_other_paths", {"SEC-64", "F77"}),
        ("test_fifty_clients", set()),
        ("test_f123_no_row", set()),
        ("test_after_f51", set()),
    ],
)
def test_a_name_tells_its_rows(name: str, numbers: set[str]) -> None:
    assert rows.rows_of_name(name) == numbers


def test_a_docstring_tells_its_rows() -> None:
    text = "F47: what SEC-03, SEC-48 to 50 and F01 to F03 say, but not F541, xF12 or SEC-123."
    expected = {"F47", "SEC-03", "SEC-48", "SEC-49", "SEC-50", "F01", "F02", "F03"}
    assert rows.rows_of_text(text) == expected


def test_results_are_the_worst_of_a_tests_parameters(tmp_path: Path) -> None:
    junit = tmp_path / "results.xml"
    junit.write_text(
        '<testsuites><testsuite timestamp="2026-11-26T10:00:00+00:00">'
        '<testcase classname="tests.unit.test_a" name="test_f01_x[a]"><failure/></testcase>'
        '<testcase classname="tests.unit.test_a" name="test_f01_x[b]"/>'
        '<testcase classname="tests.unit.test_a" name="test_f02_y"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    outcomes, day = rows.read_results(junit)
    at = "tests/unit/test_a.py"
    assert outcomes == {(at, "test_f01_x"): "failed", (at, "test_f02_y"): "skipped"}
    one, two = (rows.Test(at, name, frozenset([n]), False) for name, n in
                (("test_f01_x", "F01"), ("test_f02_y", "F02")))  # fmt: skip
    three = rows.Test(at, "test_f03_z", frozenset(["F03"]), True)
    table = {number: rows.Row("when", "then", False) for number in ("F01", "F02", "F03")}
    page = rows.render(table, [one, two, three], outcomes, day)
    assert "unit | failed 2026-11-26 |" in page and "soak | not run |" in page
    assert rows.without_results(page) == rows.without_results(rows.render(table, [one, two, three]))


def test_long_runs_are_kept_until_they_are_run_again(tmp_path: Path) -> None:
    def junit(*cases: tuple[str, str, str], day: str) -> Path:
        path = tmp_path / f"{day}.xml"
        told = "".join(
            f'<testcase classname="tests.unit.test_a" name="{name}" time="{seconds}">{inside}'
            "</testcase>"
            for name, seconds, inside in cases
        )
        path.write_text(
            f'<testsuites><testsuite timestamp="{day}T10:00:00">{told}</testsuite></testsuites>'
        )
        return path

    measured = '<properties><property name="inputs" value="7|8"/></properties>'
    first = rows.read_long(
        junit(("test_x[9]", "90", measured), ("test_y", "6", ""), day="2026-01-01")
    )
    page = rows.render({}, [], long_runs=first)
    assert "| unit/test_a.py::test_x[9] | passed 2026-01-01 | 1.5 | inputs: 7/8 |" in page
    kept = rows.kept_long(page)
    assert kept == first
    kept |= rows.read_long(junit(("test_x[9]", "60", "<failure/>"), day="2026-01-02"))
    page = rows.render({}, [], long_runs=kept)
    assert "| unit/test_a.py::test_x[9] | failed 2026-01-02 | 1.0 |  |" in page
    assert "| unit/test_a.py::test_y | passed 2026-01-01 | 0.1 |  |" in page
    assert rows.without_results(page) == rows.without_results(rows.render({}, []))
