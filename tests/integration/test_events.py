"""`ctl events`: followed over dead managers without gap or double, asked for by number and time."""

import json
import subprocess
import time
from datetime import datetime
from typing import Any

from tests.harness import Lighterd, await_that
from tests.lives import ask, begin


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def newest(lighterd: Lighterd) -> int:
    return int(ask(lighterd, "events.newest")["sequence"])


def test_followed_over_dead_managers_and_asked_for_later(lighterd: Lighterd, busybox: str) -> None:
    first = newest(lighterd)
    follower = subprocess.Popen(
        lighterd.ctl_argv("--format", "json", "events"), stdout=subprocess.PIPE
    )
    try:
        subscribers = lambda: ask(lighterd, "system.health")["subscribers"]  # noqa: E731
        await_that(subscribers, 20, "it listens")
        lighterd.kill9()  # before anything came
        lighterd.start()
        middle_ns = 0
        for number in range(3):
            begin(lighterd, busybox, f"c{number}", "true")
            if number == 1:
                middle_ns = time.time_ns()
            lighterd.kill9()
            lighterd.start()
        await_that(subscribers, 20, "it listens again")
        ask(lighterd, "tasks.wait", id="c2", exec_id="")
        last = newest(lighterd)
        seen: list[dict[str, Any]] = []
        assert follower.stdout is not None
        while not seen or seen[-1]["sequence"] < last:
            seen += lines(follower.stdout.readline())
    finally:
        follower.terminate()
        follower.wait(30)
    assert [event["sequence"] for event in seen] == list(range(first + 1, last + 1))

    def asked(*words: str) -> list[dict[str, Any]]:
        return lines(lighterd.ctl("--format", "json", "events", *words, check=True).stdout)

    def numbers(*words: str) -> list[int]:
        return [event["sequence"] for event in asked(*words)]

    assert asked("--since", str(first), "--until", str(last)) == seen
    mine = ("--filter", "container=c1", "--since", str(first))
    assert numbers(*mine, "--until", str(last)) == numbers(*mine, "--no-follow")
    assert numbers(*mine, "--until", str(first)) == []
    assert numbers("--since", str(last - 2), "--no-follow") == [last - 1, last]
    later = [event["sequence"] for event in seen if event["topic"].startswith("/tasks/")]
    since = f"@{middle_ns // 1_000_000_000}.{middle_ns % 1_000_000_000:09}"
    assert numbers("--since", since, "--until", "0s") == [
        event["sequence"] for event in seen if at_ns(event) >= middle_ns
    ]
    exits = ("--filter", "event=exit", "--filter", "container=c1", "--since", "0", "--no-follow")
    (only,) = asked(*exits)
    assert only["event"]["container_id"] == "c1"
    assert numbers("--since", "1h", "--no-follow", "topic~=^/tasks/") == later
    ahead = lighterd.ctl("events", "--since", str(last + 100))
    assert ahead.returncode == 1
    assert f"the last is {newest(lighterd)}".encode() in ahead.stderr


def at_ns(event: dict[str, Any]) -> int:
    text = event["timestamp"]
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0") or "0")
