"""Write docs/reliability.md: each row of tests/rows.toml with the tests that hold it.

A test says in its name which rows it holds, or in its docstring:

    test_f51_…          test_sec_36_…           one row
    test_f01_f22_…      test_f23_to_f32_…       from one to the other
    test_sec51_and_52_… test_sec_64_f77_…       each of them

    \"\"\"… (F47) …\"\"\"    \"\"\"… F23 to F32 …\"\"\"

Sources are parsed and never imported, so this takes a second and needs nothing but Python.

Results of long runs are kept: a page that is written again has what it had, but for the tests of
which it is told something new.
"""

import argparse
import ast
import re
import sys
import tomllib
import xml.etree.ElementTree as ET  # of our own pytest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[1]
TABLE = "tests/rows.toml"
PAGE = "docs/reliability.md"
SHOWN = 3
# A row's tests are told apart by what they need; the folder of a test says that.
IN_NAME = re.compile(r"_(?:(to|and)_)?(?:(f|sec)_?)?(\d\d)(?=_|$)")
NAME_HEAD = re.compile(r"test(?:_(?:(?:to|and)_)?(?:f|sec)_?\d\d|_(?:to|and)_\d\d)*(?=_|$)")
IN_TEXT = re.compile(r"\b(F|SEC-)(\d\d)(?: to (?:F|SEC-)?(\d\d))?\b")

HEAD = """\
# Reliability

What may break or be tried against a host, what is true afterwards, and the tests that hold it.
`make reliability` writes this page from tests/rows.toml and from the tests, which carry a row's
number in their name or docstring. `make test` fails when a row has no test, when a test names a row
that is not here, and when this page is behind either.

After every test of an instance the census looks for what may have stayed: processes, mounts,
cgroups, sockets, directories (docs/testing.md). The kinds are the folders of tests/; *soak* marks
the long version of a test, which `make soak` runs.
"""
LONG_HEAD = """\
## Long runs

The versions of tests that `make soak` runs, each as it was run last.

| test | result | minutes | measured |
|---|---|---|---|
"""
LONG = LONG_HEAD.splitlines()[0]
NO_RESULT = "The last column is empty: this page was written without the results of a whole run"


class Row(NamedTuple):
    """`then`: what must be true; of what does not apply here, `absent`: what keeps it away."""

    when: str
    then: str
    absent: bool


@dataclass(frozen=True)
class Test:
    """One test function, parameters aside."""

    file: str
    name: str
    rows: frozenset[str]
    soak: bool

    @property
    def kind(self) -> str:
        return "soak" if self.soak else self.file.split("/")[1]


def read_rows(checkout: Path = CHECKOUT) -> dict[str, Row]:
    """Rows by number, F01 to F80 and then SEC-01 on; KeyError or ValueError if one is malformed."""
    rows = {}
    for number, told in tomllib.loads((checkout / TABLE).read_text()).items():
        if unknown := told.keys() - {"when", "then", "absent"}:
            raise ValueError(f"{TABLE}: [{number}] has {sorted(unknown)}")
        absent = "absent" in told
        rows[number] = Row(told["when"], told["absent" if absent else "then"], absent)
    return rows


def rows_of_name(name: str) -> set[str]:
    rows: set[str] = set()
    if not (head := NAME_HEAD.match(name)):
        return rows
    before, kind = 0, ""
    for joint, prefix, digits in IN_NAME.findall(head.group()):
        goes_on = joint == "to" or (not joint and prefix == kind)
        kind = prefix or kind
        first = before + 1 if goes_on else int(digits)
        rows |= numbers(kind, first, int(digits))
        before = int(digits)
    return rows


def rows_of_text(text: str) -> set[str]:
    rows: set[str] = set()
    for prefix, first, last in IN_TEXT.findall(text):
        rows |= numbers(prefix.strip("-").lower(), int(first), int(last or first))
    return rows


def numbers(kind: str, first: int, last: int) -> set[str]:
    prefix = {"f": "F", "sec": "SEC-"}[kind]
    return {f"{prefix}{number:02}" for number in range(first, last + 1)}


def find_tests(checkout: Path = CHECKOUT) -> Iterator[Test]:
    """All test functions that name a row, in the order of their files."""
    for path in sorted((checkout / "tests").rglob("test_*.py")):
        file = str(path.relative_to(checkout))
        for node in ast.walk(ast.parse(path.read_bytes(), file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_test(node):
                rows = rows_of_name(node.name) | rows_of_text(ast.get_docstring(node) or "")
                marks = [ast.unparse(mark) for mark in node.decorator_list]  # parameters' aside
                if rows:
                    yield Test(file, node.name, frozenset(rows), "pytest.mark.soak" in marks)


def _is_test(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return node.name.startswith("test_")


def read_results(*junits: Path) -> tuple[dict[tuple[str, str], str], str]:
    """Worst outcome by (file, test), and the day of the last run, of JUnit files of pytest's."""
    worst: dict[tuple[str, str], str] = {}
    rank = ["passed", "skipped", "failed"]
    days = []
    for junit in junits:
        root = ET.parse(junit).getroot()  # noqa: S314
        days.append(_day(root))
        for case in root.iter("testcase"):
            at = (_file(case), case.attrib["name"].split("[")[0])
            worst[at] = max(_outcome_of(case), worst.get(at, "passed"), key=rank.index)
    return worst, max(days)


def read_long(junit: Path) -> dict[str, str]:
    """Lines of the page's table of long runs, by test, of a JUnit file of `make soak`."""
    root = ET.parse(junit).getroot()  # noqa: S314
    lines = {}
    for case in root.iter("testcase"):
        name = f"{_file(case).removeprefix('tests/')}::{case.attrib['name']}"
        measured = "; ".join(
            f"{one.attrib['name']}: {one.attrib['value']}" for one in case.iter("property")
        )
        minutes = float(case.attrib["time"]) / 60
        result = f"{_outcome_of(case)} {_day(root)}"
        lines[name] = f"| {name} | {result} | {minutes:.1f} | {measured.replace('|', '/')} |"
    return lines


def kept_long(page: str) -> dict[str, str]:
    """The lines that a page has of long runs, by test."""
    lines = page.partition(LONG)[2].splitlines()
    return {line.split("|")[1].strip(): line for line in lines if "::" in line}


def _day(root: ET.Element) -> str:
    return next(suite.attrib["timestamp"] for suite in root.iter("testsuite"))[:10]


def _file(case: ET.Element) -> str:
    return case.attrib["classname"].replace(".", "/") + ".py"


def _outcome_of(case: ET.Element) -> str:
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags else "passed"


def render(
    rows: dict[str, Row],
    tests: list[Test],
    results: dict[tuple[str, str], str] | None = None,
    day: str = "",
    long_runs: dict[str, str] | None = None,
) -> str:
    """The page; without results its last column is empty and says why."""
    lines = [HEAD]
    lines.append(f"Results: `make test` of {day}.\n" if results is not None else f"{NO_RESULT}.\n")
    for title, prefix in (("Faults", "F"), ("Security", "SEC-")):
        lines.append(f"## {title}\n")
        lines.append("| row | what may happen | what is true then | tests | kind | result |")
        lines.append("|---|---|---|---|---|---|")
        for number, row in rows.items():
            if number.startswith(prefix):
                held_by = [test for test in tests if number in test.rows]
                lines.append(_line(number, row, held_by, results, day))
        lines.append("")
    return (
        "\n".join(lines)
        + "\n"
        + LONG_HEAD
        + "".join(f"{line}\n" for _, line in sorted((long_runs or {}).items()))
    )


def _line(
    number: str,
    row: Row,
    tests: list[Test],
    results: dict[tuple[str, str], str] | None,
    day: str,
) -> str:
    shown = [f"{test.file.removeprefix('tests/')}::{test.name}" for test in tests[:SHOWN]]
    if len(tests) > SHOWN:
        shown.append(f"and {len(tests) - SHOWN} more")
    kinds = ", ".join(dict.fromkeys(test.kind for test in tests))
    then = f"*Not here:* {row.then}" if row.absent else row.then
    cells = [number, row.when, then, "<br>".join(shown), kinds, _outcome(tests, results, day)]
    return f"| {' | '.join(cells)} |"


def _outcome(tests: list[Test], results: dict[tuple[str, str], str] | None, day: str) -> str:
    if results is None:
        return ""
    outcomes = [results.get((test.file, test.name), "not run") for test in tests]
    if "failed" in outcomes:
        return f"failed {day}"
    passed = outcomes.count("passed")
    if passed == len(outcomes):
        return f"passed {day}"
    return f"{passed} of {len(outcomes)} passed {day}" if passed else "not run"


def without_results(page: str) -> list[str]:
    """What of a page depends on rows and tests alone: no last column with its day, no long runs."""
    lines = page.partition(LONG)[0].splitlines()
    lines = [line for line in lines if not line.startswith((NO_RESULT, "Results: "))]
    return [re.sub(r"\|[^|]*\|$", "|", line) if line.startswith("|") else line for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--results", type=Path, action="append", help="a JUnit file of the last whole run"
    )
    parser.add_argument("--long", type=Path, action="append", default=[], help="one of `make soak`")
    args = parser.parse_args()
    rows, tests = read_rows(), list(find_tests())
    results, day = read_results(*args.results) if args.results else (None, "")
    page = CHECKOUT / PAGE
    long_runs = kept_long(page.read_text())
    for junit in args.long:
        long_runs |= read_long(junit)
    page.write_text(render(rows, tests, results, day, long_runs))
    for number in rows:
        if not any(number in test.rows for test in tests):
            sys.stderr.write(f"{number}: no test\n")


if __name__ == "__main__":
    main()
