"""The closed set of errors, and their trip over the wire."""

import pytest

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
