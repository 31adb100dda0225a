"""The closed set of errors, and their trip over the wire."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.errors import from_os
from lighter.proto import errors

# https://grpc.io/docs/guides/status-codes/: the canonical codes, less OK (0) and UNAUTHENTICATED.
CANONICAL = (
    "canceled unknown invalid-argument deadline-exceeded not-found already-exists",
    "permission-denied resource-exhausted failed-precondition aborted out-of-range",
    "unimplemented internal unavailable data-loss",
)


def test_the_set_is_grpcs() -> None:
    assert set(errors.BY_CODE) == set(" ".join(CANONICAL).split())


@pytest.mark.parametrize("code", errors.BY_CODE)
def test_an_error_comes_back_as_its_class(code: str) -> None:
    sent = errors.BY_CODE[code]("delete container web: it runs", pid=7)
    back = errors.from_wire(sent.code, sent.message, sent.details)
    assert type(back) is type(sent)
    assert (str(back), back.details) == ("delete container web: it runs", {"pid": 7})


def test_a_code_of_a_later_version_becomes_unknown() -> None:
    error = errors.from_wire("unauthenticated", "pull x: no credential")
    assert type(error) is errors.Unknown
    assert error.message == "pull x: no credential"


def test_a_mistake_of_ours_is_told_from_what_has_words() -> None:
    mistake = KeyError("x")
    assert errors.unforeseen(mistake) is mistake
    for told in (errors.NotFound("find x: it is not there"), FileNotFoundError(2, "none")):
        assert errors.unforeseen(told) is None


PATH = "/var/lib/lighter/x"


@pytest.mark.parametrize(
    ("error", "attempt", "words"),
    [
        (OSError(2, "Gone", PATH), f"open {PATH}", "Gone"),
        (OSError(2, "Gone", PATH), f"open {PATH} for b", "Gone"),
        (OSError(2, "Gone", PATH), f"open {PATH}/y", f"Gone: {PATH}"),
        (OSError(2, "Gone", PATH), "open x", f"Gone: {PATH}"),
        (OSError(2, "Gone", PATH), "", f"Gone: {PATH}"),
        (OSError(2, "Gone", PATH.encode()), f"open {PATH}", "Gone"),
        (OSError(2, "Gone", PATH, None, "/y"), f"write {PATH}", "Gone: /y"),
        (OSError(2, "Gone", PATH, None, "/y"), "write x", f"Gone: {PATH} -> /y"),
        (OSError(2, "Gone", 7), "list it", "Gone"),
        (OSError(2, "Gone"), "list it", "Gone"),
        (OSError("only words"), "list it", "only words"),
        (ValueError("no number"), "read it", "no number"),
        (KeyError(), "read it", "KeyError"),
    ],
    ids=str,
)
def test_what_an_error_says_names_a_path_once(error: Exception, attempt: str, words: str) -> None:
    assert errors.words_of(error, attempt) == words
    if isinstance(error, OSError):
        assert from_os(attempt, error).message == f"{attempt}: {words}"


def test_no_message_has_an_errors_number_and_its_path_once_more() -> None:
    """An OSError as text is "[Errno 2] No such file or directory: '/x'"."""
    found = []
    for file in sources():
        for handler in handlers(ast.parse(file.read_bytes())):
            for text in (node for node in ast.walk(handler) if isinstance(node, ast.JoinedStr)):
                said = (part.value for part in text.values if isinstance(part, ast.FormattedValue))
                if any(isinstance(one, ast.Name) and one.id == handler.name for one in said):
                    found.append(f"{file}:{text.lineno}")
    assert not found, "words_of says it"


def sources() -> Iterator[Path]:
    """Of the product."""
    for folder in ("ctl", "daemon", "proto", "shim"):
        yield from (Path(__file__).parents[3] / folder).rglob("*.py")


def handlers(module: ast.Module) -> Iterator[ast.ExceptHandler]:
    """Those of errors of the system, by name."""
    for node in ast.walk(module):
        if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
            kinds_of = (getattr(builtins, name, None) for name in names)
            if any(isinstance(kind, type) and issubclass(kind, OSError) for kind in kinds_of):
                yield node
