"""What the next manager is asked, and what of its answer is new."""

import time
from typing import Any

from lighter.ctl.resume import resumption


def log(time_ns: int, data: bytes, stream: int = 1) -> dict[str, Any]:
    return {"timestamp": time_ns, "stream": stream, "data": data}


def test_a_call_that_may_have_been_executed_is_not_asked_again() -> None:
    for method in ("tasks.kill", "tasks.create", "images.import", "tasks.stop"):
        assert resumption(method, {}) is None


def test_a_wait_is_asked_again_and_says_so() -> None:
    again = resumption("tasks.wait", {"id": "c", "exec_id": ""})
    assert again is not None
    assert again.body() == {"id": "c", "exec_id": "", "reissued": True}


def test_events_go_on_after_the_last_number() -> None:
    again = resumption("events.subscribe", {"since": 3, "follow": True})
    assert again is not None
    assert again.body()["since"] == 3
    assert again.take({"sequence": 7}) == {"sequence": 7}
    assert again.body()["since"] == 7
    assert again.take({"sequence": 7}) is None
    assert again.take({"sequence": 8}) == {"sequence": 8}


def test_a_log_without_items_yet_is_asked_for_as_at_first() -> None:
    body = {"id": "c", "tail": 5, "since": None}
    again = resumption("logs.read", body)
    assert again is not None
    assert again.body() == body


def test_a_log_that_is_followed_from_its_end_goes_on_from_when_it_was_asked_for() -> None:
    """Its end is elsewhere by then: what was written while no manager was there is new."""
    before = time.time_ns()
    again = resumption("logs.read", {"id": "c", "tail": 0, "since": None, "follow": True})
    assert again is not None
    body = again.body()
    assert body["tail"] is None and before <= body["since"] <= time.time_ns()


def test_a_log_goes_on_within_one_instant() -> None:
    again = resumption("logs.read", {"id": "c", "tail": 5, "since": None})
    assert again is not None
    for item in (log(10, b"old"), log(20, b"abc"), log(20, b"err", 2), log(20, b"de")):
        assert again.take(item) == item
    assert again.body() == {"id": "c", "tail": None, "since": 19}
    assert again.take(log(20, b"abc")) is None
    assert again.take(log(20, b"err", 2)) is None
    assert again.take(log(20, b"defg")) == log(20, b"fg")
    assert again.take(log(21, b"new")) == log(21, b"new")
    assert again.body()["since"] == 20
