"""Every fault point of the source is used by a test, and every point that a test names is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lighter.proto import events
from lighter.shim import shim
from tests.grpc import test_sweep as swept_by_ctr
from tests.integration import test_sweep as swept_by_ctl
from tests.unit.test_rows import CHECKOUT

POINT = re.compile(r"[a-z0-9]+\.[a-z0-9_]+(?:-[a-z0-9_]+)*")
# Lists of points that are left to other tests.
LEFT = {"ELSEWHERE"}


def methods_of_a_shim() -> set[str]:
    """What a request to a shim may be called, by the comparisons of its dispatcher."""
    tree = ast.parse(Path(shim.__file__).read_bytes())
    return {
        compared.comparators[0].value
        for compared in ast.walk(tree)
        if isinstance(compared, ast.Compare)
        and ast.unparse(compared.left) == "method"
        and isinstance(compared.comparators[0], ast.Constant)
        and isinstance(compared.comparators[0].value, str)
    }


TOPICS = {
    topic.rpartition("/")[2]
    for topic in (events.CREATE, events.START, events.EXIT, events.EXEC_STARTED, events.CLOSED)
}
# Points whose name is made where they are passed.
MADE = {
    "event.{message.topic.rpartition('/')[2]}": {f"event.{topic}" for topic in TOPICS},
    "shim.{method}-asked": {f"shim.{method}-asked" for method in methods_of_a_shim()},
}


def points() -> Iterator[str]:
    for folder in ("daemon", "shim", "proto", "ctl"):
        for file in sorted((CHECKOUT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) != "hit":
                    continue
                (argument,) = node.args
                if isinstance(argument, ast.Constant):
                    yield argument.value
                else:
                    yield from MADE[ast.unparse(argument)[2:-1]]


def named_by_tests() -> set[str]:
    """What looks like a point in the strings of tests; docstrings and this file aside."""
    named = set()
    for file in sorted((CHECKOUT / "tests").rglob("*.py")):
        if file == Path(__file__):
            continue
        for text in strings(ast.parse(file.read_bytes(), str(file))):
            named |= set(POINT.findall(text))
    return named


def strings(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) if name in LEFT:
            return
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Constant(value=str(text)):
            yield text
    for child in ast.iter_child_nodes(node):
        yield from strings(child)


def test_every_fault_point_is_used_by_a_test() -> None:
    found = set(points())
    assert len(found) > 100, "the source is read"
    assert not (unused := found - named_by_tests()), sorted(unused)


def test_methods_of_a_shim_are_found() -> None:
    assert {"start", "kill", "exec", "end", "release_output"} <= methods_of_a_shim()


def test_the_page_tells_what_is_swept() -> None:
    told: dict[str, set[str]] = {}
    for line in (CHECKOUT / "docs/testing.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 9 and "test_sweep.py" in cells[7]:
            names = cells[1].partition(":")[0].split(", ")
            told.setdefault(cells[2], set()).update(names)
    assert told["ctl"] - {"a worker before its work"} == set(swept_by_ctl.COMMANDS)
    assert told["ctr"] == set(swept_by_ctr.COMMANDS)
