"""daemon/journal: one entry is one line, whatever a message quotes."""

import logging
from collections.abc import Iterator

import pytest

from lighter.daemon.journal import Repeated, configure
from lighter.proto.errors import Unavailable


class Output:
    """What was written to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def take(self) -> str:
        return self._capsys.readouterr().err


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Iterator[Output]:
    root = logging.getLogger()
    before, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield Output(capsys)
    root.handlers[:] = before
    root.setLevel(level)
    logging.raiseExceptions = raises


def test_content_cannot_forge_an_entry_or_steer_a_terminal(output: Output) -> None:
    configure("info")
    logging.getLogger("x").info("name %s", "a\nlevel=error from=y\r\x1b[2J\x9b1m\u2028\udcff é")
    text = output.take()
    assert text.endswith("name a\\nlevel=error from=y\\r\\x1b[2J\\x9b1m\\u2028\\udcff é\n")
    assert text.count("\n") == 1


def test_a_traceback_is_one_line_too(output: Output) -> None:
    configure("info")
    try:
        raise ValueError("b\0d")
    except ValueError:
        logging.getLogger("x").exception("call")
    text = output.take()
    assert "ValueError: b\\x00d" in text and text.count("\n") == 1


def test_the_level_is_containerds_word(output: Output) -> None:
    configure("warn")
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    text = output.take()
    assert "quiet" not in text and "level=warning" in text


def test_the_journal_gets_a_priority_and_no_time(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    configure("debug")
    logging.getLogger("x").error("bad")
    assert output.take() == "<3>level=error from=x bad\n"


def test_what_fails_again_and_again_is_told_at_growing_intervals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mistake with its place once; a failure of another kind at once; and when it is over."""
    failures = Repeated(logging.getLogger("x"), "try it")
    failures.ended()
    for number in range(9):
        failures.failed(ZeroDivisionError("a mistake"))
        if number > 6:
            failures.failed(Unavailable(f"try it: {number} left"))
    with caplog.at_level("WARNING"):
        failures.ended()
        failures.ended()
        failures.failed(ZeroDivisionError("a mistake"))
    told = [(record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    again = "try it: ZeroDivisionError: a mistake; %d times so far, trying on"
    assert told == [
        ("try it: ZeroDivisionError: a mistake; trying on", True),
        (again % 2, False),
        (again % 4, False),
        (again % 8, False),
        ("try it: try it: 7 left; trying on", False),
        ("try it: try it: 8 left; 2 times so far, trying on", False),
        ("try it: done, at try 12", False),
        ("try it: ZeroDivisionError: a mistake; trying on", True),
    ]


def test_failures_without_anything_in_common_do_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Repeated(logging.getLogger("x"), "try it")
    for number in range(1000):
        failures.failed(OSError("x" * number))
    assert len(caplog.records) < 30
