"""What a restart policy wants, in Docker's words and in containerd's labels."""

import pytest

from lighter.daemon.restarts import labels
from lighter.daemon.restarts.policy import (
    RestartPolicy,
    from_record,
    next_delay_ms,
    parse,
    to_record,
)
from lighter.proto.errors import InvalidArgument

ALWAYS, UNLESS = RestartPolicy("always"), RestartPolicy("unless-stopped")
FAILING = RestartPolicy("on-failure", 2)


@pytest.mark.parametrize(
    ("policy", "exit_status", "count", "stopped", "wanted"),
    [
        (RestartPolicy(), 1, 0, False, False),
        (ALWAYS, 0, 99, False, True),
        (ALWAYS, 0, 0, True, False),
        (UNLESS, 0, 99, False, True),
        (UNLESS, 1, 0, True, False),
        (FAILING, 0, 0, False, False),
        (FAILING, 1, 1, False, True),
        (FAILING, 1, 2, False, False),
        (FAILING, 137, 0, True, False),
        (RestartPolicy("on-failure"), 1, 10_000, False, True),
    ],
)
def test_after_an_end(
    policy: RestartPolicy, exit_status: int, count: int, stopped: bool, wanted: bool
) -> None:
    assert policy.wants(exit_status, count, stopped) is wanted


def test_when_a_manager_starts() -> None:
    wanted = {(p, s): p.wants_at_start(s) for p in (ALWAYS, UNLESS, FAILING) for s in (True, False)}
    assert {key for key, wants in wanted.items() if wants} == {
        (ALWAYS, True),
        (ALWAYS, False),
        (UNLESS, False),
    }


def test_pauses_double_to_a_minute_and_begin_anew_after_ten_seconds() -> None:
    pauses = [0]
    for _ in range(12):
        pauses.append(next_delay_ms(pauses[-1], 0.5))
    assert pauses[1:] == [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]
    assert next_delay_ms(60_000, 10.0) == 100
    assert next_delay_ms(60_000, 9.9) == 60_000


@pytest.mark.parametrize("text", ["no", "always", "unless-stopped", "on-failure", "on-failure:3"])
def test_the_notation(text: str) -> None:
    policy = parse(text)
    assert str(policy) == text
    assert from_record(to_record(policy)) == policy


@pytest.mark.parametrize(
    "text",
    [
        *("sometimes", "always:3", "no:1", "on-failure:", "on-failure:-1", "on-failure:x", ":3"),
        *(f"on-failure:{1 << 31}", "on-failure:" + "0" * 12 + "9" * 10, "on-failure:" + "9" * 5000),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(InvalidArgument, match="choose restart policy"):
        parse(text)


def test_a_record_of_a_later_release_is_none() -> None:
    assert from_record({"policy": "when-idle", "max_retries": 0}) == RestartPolicy()
    assert from_record({}) == RestartPolicy()


def test_labels() -> None:
    running = {labels.STATUS: "running"}
    assert labels.policy(running) == ALWAYS
    assert labels.policy({**running, labels.POLICY: "on-failure:2"}) == FAILING
    assert labels.policy({labels.STATUS: "stopped"}) == RestartPolicy()
    assert labels.policy({labels.POLICY: "always"}) == RestartPolicy()
    assert labels.count({}) == 0
    assert labels.count({labels.COUNT: "7"}) == 7
    assert labels.is_stopped({labels.EXPLICITLY_STOPPED: "True"})
    assert not labels.is_stopped({labels.EXPLICITLY_STOPPED: "yes"})
    for odd in ("many", str(1 << 31), "0" * 12 + "9" * 10):
        with pytest.raises(InvalidArgument):
            labels.count({labels.COUNT: odd})
    with pytest.raises(InvalidArgument):
        labels.policy({**running, labels.POLICY: "odd"})
