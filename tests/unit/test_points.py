"""Every fault point of the source is used by a test, and every point that a test names is there."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lighter.proto import events
from lighter.shim import shim
from tests.grpc import test_sweep as swept_by_ctr
from tests.integration import test_sweep as swept_by_ctl
from tests.unit.test_rows import CHECKOUT

POINT = re.compile(r"[a-z0-9]+\.[a-z0-9_]+(?:-[a-z0-9_]+)*")
PLANNED = re.compile(POINT.pattern + r":(error|bug|delay|abort|stop)(:\d+)?")
OF_POINTS = re.compile(r"([A-Z]+_)?POINTS|MAY_FAIL|FAILING")
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


@cache
def points() -> frozenset[str]:
    return frozenset(_points())


def _points() -> Iterator[str]:
    for folder in ("daemon", "shim", "proto", "ctl"):
        for file in sorted((CHECKOUT / folder).rglob("*.py")):
            source = file.read_bytes()
            for node in ast.walk(ast.parse(source, str(file))) if b"hit(" in source else ():
                match node:
                    case ast.Call(ast.Name("hit"), [ast.Constant(value=str(point))]):
                        yield point
                    case ast.Call(ast.Name("hit"), [argument]):
                        yield from MADE[ast.unparse(argument)[2:-1]]


def named_by_tests() -> set[str]:
    """What looks like a point in the strings of tests; docstrings and this file aside."""
    named = set()
    for tree in trees_of_tests().values():
        for text in strings(tree):
            named |= set(POINT.findall(text))
    return named


@cache
def trees_of_tests() -> dict[str, ast.AST]:
    """By the file's path in the checkout."""
    return {
        str(file.relative_to(CHECKOUT)): ast.parse(file.read_bytes(), str(file))
        for file in sorted((CHECKOUT / "tests").rglob("*.py"))
        if file != Path(__file__)
    }


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
    found = points()
    assert len(found) > 100, "the source is read"
    assert not (unused := found - named_by_tests()), sorted(unused)


def told_as_points(tree: ast.AST, families: set[str]) -> set[str]:
    """What a test takes for points: what it plans an action at, what stands where it lists or
    parametrizes points, and what has a hyphen and begins as some points do.
    """
    told = set()
    for text in strings(tree):
        terms = text.split(",")
        told |= {term.partition(":")[0] for term in terms if PLANNED.fullmatch(term)}
        if POINT.fullmatch(text) and "-" in text and text.partition(".")[0] in families:
            told.add(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(OF_POINTS.fullmatch(ast.unparse(target)) for target in targets):
                told |= set(filter(POINT.fullmatch, strings(node.value)))
        if isinstance(node, ast.Call) and is_of_points(node):
            told |= set(filter(POINT.fullmatch, strings(node.args[1])))
    return told


def is_of_points(call: ast.Call) -> bool:
    match call:
        case ast.Call(ast.Attribute(attr="parametrize"), [names, *_]):
            return bool(re.search(r"\bpoints?\b", ast.unparse(names)))
    return False


def test_every_point_that_a_test_names_is_there() -> None:
    """Else nothing happens at it, and the test passes without its fault."""
    there = points()
    families = {point.partition(".")[0] for point in there}
    gone = {
        f"{file}: {point}"
        for file, tree in trees_of_tests().items()
        for point in told_as_points(tree, families) - there
    }
    assert not gone, "\n".join(sorted(gone))


@pytest.mark.parametrize(
    "source",
    [
        'start(FAULT="gone.by:abort")',
        'start(FAULT="create.done:bug:2,gone.by:error:0")',
        'GC_POINTS: list[str] = ["create.done", "gone.by"]',
        'mark = pytest.mark.parametrize(("point", "left"), [("gone.by", 3)])',
        'start(FAULT=plan("create.gone-by"))',
    ],
)
def test_a_point_that_has_gone_is_seen(source: str) -> None:
    gone = told_as_points(ast.parse(source), {"create"}) - {"create.done"}
    assert gone in ({"gone.by"}, {"create.gone-by"})


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
