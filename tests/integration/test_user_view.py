"""What a user sees over time: logs across a rotation, followed and cut; events, old and new."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Lighterd, await_that
from tests.lives import ask

pytestmark = pytest.mark.shared_lighterd


@contextmanager
def following(lighterd: Lighterd, *args: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A ctl whose output is read while it runs; it is ended with SIGINT, as by Ctrl-C."""
    process = subprocess.Popen(
        lighterd.ctl_argv(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(2)


def paced(lighterd: Lighterd, busybox: str, script: str, **log: int) -> Path:
    """A container `x` that goes on at each write to the FIFO that is returned."""
    folder = lighterd.base / "share"
    folder.mkdir()
    gate = folder / "gate"
    subprocess.run(["mkfifo", str(gate)], check=True)
    with lighterd.client() as client:
        mount = {"destination": "/share", "type": "bind", "source": str(folder), "options": ["rw"]}
        client.call(
            *("containers", "create"),
            id="x",
            image=busybox,
            mounts=[mount],
            log=log,
            args=["sh", "-c", script],
        )
        client.call("tasks", "create", id="x")
        client.call("tasks", "start", id="x")
    return gate


def test_logs_across_a_rotation(lighterd: Lighterd, busybox: str) -> None:
    script = "for i in 1 2 3 4 5 6; do seq $((i*1000)) $((i*1000+999)); cat /share/gate; done"
    gate = paced(lighterd, busybox, script, max_size=6000, max_file=100)
    with following(lighterd, "logs", "-f", "x") as follower:
        assert follower.stdout is not None
        for start in range(1000, 7000, 1000):
            wanted = [f"{number}\n".encode() for number in range(start, start + 1000)]
            assert [follower.stdout.readline() for _ in wanted] == wanted
            gate.write_text("")
        assert follower.stdout.read() == b""
        assert follower.wait(20) == 0
    files = list((lighterd.root / "logs" / "default" / "x").iterdir())
    assert len(files) > 3, "it was rotated"
    whole = "".join(f"{number}\n" for number in range(1000, 7000)).encode()
    assert lighterd.ctl("logs", "x", check=True).stdout == whole
    for count in (0, 1, 999, 1000, 2500, 6000, 9999):
        wanted = b"".join(whole.splitlines(keepends=True)[-count:]) if count else b""
        assert lighterd.ctl("logs", "--tail", str(count), "x", check=True).stdout == wanted
    assert lighterd.ctl("logs", "--since", "1h", "x", check=True).stdout == whole
    stamped = lighterd.ctl("logs", "-t", "--tail", "1", "x", check=True).stdout.split()
    assert len(stamped) == 2 and stamped[1] == b"6999"
    since = lighterd.ctl("logs", "--since", "0s", "x", check=True).stdout
    assert since == b""


def test_a_follower_that_is_interrupted_or_closed_goes_and_the_container_stays(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl(
        "run", "-d", busybox, "x", "sh", "-c", "yes | head -n 9999; sleep 1000", check=True
    )
    with following(lighterd, "logs", "-f", "x") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"y\n"
        follower.send_signal(2)
        follower.stdout.read()
        assert follower.wait(30) == 130
        assert follower.stderr is not None and b"Traceback" not in follower.stderr.read()
    with following(lighterd, "logs", "-f", "x") as follower:
        assert follower.stdout is not None
        follower.stdout.readline()
        follower.stdout.close()
        lighterd.ctl("exec", "x", "sh", "-c", "yes | head -n 99999 >/proc/1/fd/1", check=True)
        assert follower.wait(30) == 141
    head = subprocess.run(
        " ".join(lighterd.ctl_argv("logs", "x")) + " | head -n 1", shell=True, capture_output=True
    )
    assert (head.stdout, head.stderr) == (b"y\n", b"")
    assert lighterd.ctl("exec", "x", "true").returncode == 0


def topics(lines: bytes) -> list[str]:
    return [json.loads(line)["topic"] for line in lines.splitlines()]


def test_events_now_and_replayed(lighterd: Lighterd, busybox: str) -> None:
    life = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    with following(lighterd, "--format", "json", "events") as follower:
        assert follower.stdout is not None
        with lighterd.client() as client:
            await_that(
                lambda: client.call("system", "health")["subscribers"], 30, "it is subscribed"
            )
        seen: list[str] = []
        lighterd.ctl("run", "--rm", busybox, "a", "true", check=True)
        while "/containers/delete" not in seen:
            seen += topics(follower.stdout.readline())
    assert [topic for topic in seen if topic in life] == life
    lighterd.restart()
    kept = [(event["sequence"], event["topic"]) for event in lighterd.events("")]
    first = lighterd.first_event + 1
    assert [number for number, _ in kept] == list(range(first, first + len(kept)))
    assert [topic for _, topic in kept if topic in life] == life


def test_hundreds_of_events_are_replayed_to_a_client_that_reads(
    lighterd: Lighterd, busybox: str
) -> None:
    """More than a client's queue holds; small, so that the credit is no limit."""
    with lighterd.client() as client:
        for _ in range(200):
            client.call("containers", "create", id="x", image=busybox, args=["true"])
            client.call("containers", "delete", id="x", force=False)
    shown = lighterd.ctl("--format", "json", "events", "--no-follow", check=True).stdout
    sequences = [json.loads(line)["sequence"] for line in shown.splitlines()]
    assert len(sequences) > 400 and sequences == list(range(1, len(sequences) + 1))


def test_a_list_of_events_from_a_closed_pipe_ends(lighterd: Lighterd, busybox: str) -> None:
    for number in range(3):
        lighterd.ctl("run", "--rm", busybox, f"c{number}", "true", check=True)
    with following(lighterd, "events", "--since", "0") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        follower.stdout.close()
        lighterd.ctl("run", "--rm", busybox, "more", "true", check=True)
        assert follower.wait(30) == 141


def test_labels_are_changed_filtered_by_and_kept(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "-d", "--label", "tier=web", busybox, "x", "sleep", "1000", check=True)
    lighterd.ctl("run", "-d", busybox, "y", "sleep", "1000", check=True)
    assert lighterd.ctl("c", "label", "x", "zone=eu", "tier=").stdout == b"zone=eu\n"
    lighterd.kill9()
    lighterd.start()
    chosen = lighterd.ctl("ps", "-f", "label=zone=eu", "--format", '{{.ID}} {{.Label "zone"}}')
    assert chosen.stdout == b"x eu\n"
    with lighterd.client() as client:
        events = list(
            client.stream("events", "subscribe", since=lighterd.first_event, follow=False)
        )
    (told,) = [event for event in events if event["topic"] == "/containers/update"]
    assert told["event"] == {
        "id": "x",
        "image": busybox,
        "labels": {"zone": "eu"},
        "snapshot_key": "x",
    }
    for labels, word in ((["a" * 4097 + "=b"], b"label"), (["=b"], b"key=value")):
        refused = lighterd.ctl("c", "label", "x", *labels)
        assert refused.returncode in (1, 2) and word in refused.stderr


def test_what_is_in_another_namespace_is_said(lighterd: Lighterd, busybox: str) -> None:
    with lighterd.client() as client:
        client.call("namespaces", "create", name="other", labels={})
    lighterd.ctl("run", "-d", busybox, "x", "sleep", "1000", check=True)
    for words in (("kill", "x"), ("exec", "x", "true"), ("tasks", "wait", "x"), ("rm", "x")):
        refused = lighterd.ctl("-n", "other", *words)
        assert refused.returncode in (1, 125), refused
        assert b"namespace default has one" in refused.stderr, refused.stderr
    assert b"has one" not in lighterd.ctl("-n", "other", "kill", "nobody").stderr
    with lighterd.client() as client:
        client.call("namespaces", "delete", name="other")


def test_a_log_without_a_limit_of_files_keeps_all(lighterd: Lighterd, busybox: str) -> None:
    limits = ("--log-max-size", "4k", "--log-max-file", "0")
    lighterd.ctl("run", "-d", *limits, busybox, "x", "seq", "1", "40000", check=True)
    lighterd.ctl("tasks", "wait", "x", check=True)
    wanted = "".join(f"{number}\n" for number in range(1, 40001)).encode()
    await_that(lambda: lighterd.ctl("logs", "x").stdout == wanted, 20, "all of it is kept")


def test_a_container_between_two_starts_is_listed_as_it_was_made(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl("run", "-d", "--restart", "always", "--name", "again", busybox, "false")
    made = ask(lighterd, "containers.get", id="again")["container"]["created_at"]

    def waiting() -> list[dict[str, Any]]:
        tasks = ask(lighterd, "tasks.list")["tasks"]
        return [task for task in tasks if task["id"] == "again" and not task["pid"]]

    seen: list[dict[str, Any]] = []

    def has_waited() -> bool:
        seen[:] = waiting()
        return any(task["restarts"] > 3 for task in seen)

    await_that(has_waited, 30, "it waits for its next start")
    (task,) = seen
    assert (task["image"], task["defined_at"]) == (busybox, made)
    ask(lighterd, "containers.delete", id="again", force=True)
