"""Health checks of real containers: probes that succeed, fail, hang and flood; dead managers."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests import images, lives
from tests.harness import Lighterd, await_that
from tests.lives import ask

SOON_S = 30.0


@pytest.fixture
def switch(manager: Lighterd) -> Path:
    """A directory that containers see as /switch."""
    path = manager.base / "share" / "switch"
    path.mkdir(parents=True)
    return path


def run(manager: Lighterd, name: str, switch: Path, *flags: str, command: str = "") -> None:
    manager.ctl(
        *("run", "-d", "--name", name, "--mount", f"type=bind,src={switch},dst=/switch"),
        *("--health-interval", "200ms", *flags, images.REFERENCE),
        *("sh", "-c", command or "sleep 1000"),
        check=True,
    )


def health(manager: Lighterd, name: str, but: Collection[int] = ()) -> dict[str, Any]:
    found = ask(manager, "containers.get", id=name, but=but)["container"]["health"]
    return found or {}


def await_health(
    manager: Lighterd, name: str, status: str, but: Collection[int] = ()
) -> dict[str, Any]:
    """None of the shims `but` these is stopped."""

    def seen() -> bool:
        return bool(health(manager, name, but).get("status") == status)

    await_that(seen, SOON_S, f"{name} is {status}")
    return health(manager, name, but)


def test_health_follows_the_probe_over_a_restart_of_the_manager(
    manager: Lighterd, switch: Path
) -> None:
    run(
        *(manager, "web", switch, "--health-cmd", "echo $((6 * 7)); echo no >&2; cat /switch/up"),
        *("--health-retries", "4", "--health-interval", "1s"),
    )
    assert "Up" in (listed := manager.ctl("ps", check=True).stdout.decode())
    assert "(health: starting)" in listed
    (switch / "new").write_text("yes")
    (switch / "new").rename(switch / "up")
    seen = await_health(manager, "web", "healthy")
    assert seen["log"][-1]["exit_code"] == 0
    assert seen["log"][-1]["output"] in ("42\nno\nyes", "no\n42\nyes", "42\nyesno\n")
    assert "(healthy)" in manager.ctl("ps", check=True).stdout.decode()
    seen = health(manager, "web")
    manager.kill9()
    (switch / "up").unlink()
    manager.start()
    assert seen["log"][-1] in health(manager, "web")["log"], "what was known is known"
    seen = await_health(manager, "web", "unhealthy")
    assert seen["failing_streak"] >= 4
    assert manager.ctl("ps", "-q", "--filter", "health=unhealthy", check=True).stdout == b"web\n"
    (switch / "up").write_text("again")
    await_health(manager, "web", "healthy")
    assert len(health(manager, "web")["log"]) == 5, "the last five are kept"
    inspected = json.loads(manager.ctl("inspect", "web", check=True).stdout)
    assert inspected["health"]["status"] == "healthy"
    template = "{{.State.Health.Status}} {{range .State.Health.Log}}{{.ExitCode}} {{.End}}{{end}}"
    shown = manager.ctl("inspect", "-f", template, "web", check=True).stdout.decode()
    assert re.match(r"healthy [01] 20\d\d-\d\d-\d\dT", shown), shown
    with manager.client("") as client:
        stream = client.stream("events", "subscribe", since=manager.first_event, follow=False)
        told = list(stream)
    changes = [e["event"]["status"] for e in told if e["topic"] == "/containers/health-status"]
    assert changes == ["healthy", "unhealthy", "healthy"]
    assert not [e for e in told if "exec" in e["topic"]], "probes are no events"


def test_a_manager_that_cannot_ask_asks_again(manager: Lighterd, switch: Path) -> None:
    (switch / "up").touch()
    run(manager, "web", switch, "--health-cmd", "cat /switch/up", "--health-retries", "1")
    await_health(manager, "web", "healthy")
    with lives.without_descriptors(manager):
        await_that(
            lambda: b"ask for health of" in manager.log.read_bytes(), SOON_S, "a probe fails"
        )
    assert health(manager, "web")["status"] == "healthy", "no fault of the container's"
    (switch / "up").unlink()
    await_health(manager, "web", "unhealthy")


def test_a_probe_that_hangs_or_floods(manager: Lighterd, switch: Path) -> None:
    """SEC-78: what a probe says is kept to a cap."""
    run(
        *(manager, "hangs", switch, "--health-cmd", "echo waiting; sleep 1000"),
        *("--health-timeout", "500ms", "--health-retries", "1"),
    )
    run(manager, "floods", switch, "--health-cmd", "yes | head -c 1000000; exit 1")
    seen = await_health(manager, "hangs", "unhealthy")
    last = seen["log"][-1]
    assert last["exit_code"] == -1
    assert last["output"].startswith("Health check exceeded timeout (0.5s)")
    # On a busy host the time is over before it has said anything; it is asked again.
    await_that(
        lambda: any("waiting" in probe["output"] for probe in health(manager, "hangs")["log"]),
        SOON_S,
        "what it had said is told",
    )
    await_health(manager, "floods", "unhealthy")
    output = health(manager, "floods")["log"][-1]["output"]
    assert len(output) == 4096 + 3
    assert output.endswith("...")
    # No probe is left behind.
    await_that(
        lambda: len(ask(manager, "tasks.pids", id="hangs")["processes"]) <= 3, SOON_S, "it ends"
    )


def test_the_start_period_forgives(manager: Lighterd, switch: Path) -> None:
    run(
        *(manager, "slow", switch, "--health-cmd", "test -e /switch/up"),
        *("--health-retries", "1", "--health-start-period", "1h"),
        *("--health-start-interval", "100ms"),
    )
    await_that(lambda: len(health(manager, "slow")["log"]) >= 3, SOON_S, "it was asked")
    assert health(manager, "slow")["status"] == "starting"
    assert health(manager, "slow")["failing_streak"] == 0
    (switch / "up").touch()
    await_health(manager, "slow", "healthy")
    (switch / "up").unlink()
    await_health(manager, "slow", "unhealthy")  # once it was healthy, failures count


def test_a_stuck_container_holds_up_no_other(manager: Lighterd, switch: Path) -> None:
    run(manager, "stuck", switch, "--health-cmd", "true", "--health-timeout", "500ms")
    await_health(manager, "stuck", "healthy")
    (shim,) = manager.shims()
    run(manager, "other", switch, "--health-cmd", "echo $RANDOM >> /switch/asked")
    lives.hold_still(shim)
    try:
        await_health(manager, "other", "healthy", but={shim})
        asked = (switch / "asked").stat().st_size
        await_that(lambda: (switch / "asked").stat().st_size > asked, SOON_S, "it is asked on")
        began = time.monotonic()
        rows = ask(manager, "tasks.list", but={shim})["tasks"]
        assert time.monotonic() - began < lives.LISTED_S
        assert {row["id"]: row["status"] for row in rows}["stuck"] == "unknown"
        await_health(manager, "stuck", "unhealthy", but={shim})
    finally:
        os.kill(shim, signal.SIGCONT)
    await_health(manager, "stuck", "healthy")


def test_a_probe_of_a_dead_manager_ends_when_its_shim_is_back(
    manager: Lighterd, switch: Path
) -> None:
    command = "echo >> /switch/asked; sleep 1000"
    run(manager, "late", switch, "--health-cmd", command, "--health-timeout", "1h")
    asked = switch / "asked"
    await_that(lambda: asked.exists() and asked.stat().st_size, SOON_S, "it is asked")

    def processes() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(manager, "tasks.pids", id="late")["processes"]
        return found

    # Before that, the next manager knows of no probe that it could end.
    await_that(lambda: any(row["exec_id"] for row in processes()), SOON_S, "its shim has told")
    (shim,) = manager.shims()
    init, *old = [row["pid"] for row in processes()]
    lives.hold_still(shim)
    try:
        manager.kill9()
        manager.start()
        await_that(
            lambda: b"end earlier probes" in manager.log.read_bytes(), SOON_S, "it cannot be ended"
        )
    finally:
        os.kill(shim, signal.SIGCONT)
    await_that(
        lambda: all(lives.process_state(pid) in ("", "Z") for pid in old), SOON_S, "it is ended"
    )
    assert old
    assert lives.process_state(init) not in ("", "Z")


def test_a_check_is_asked_over_a_pipe_until_its_shim_has_opened_it(
    manager: Lighterd, switch: Path
) -> None:
    """The shim opens it by its number, which another file of the manager's might have by then."""
    run(manager, "late", switch, "--health-cmd", "true", "--health-timeout", "500ms")
    await_health(manager, "late", "healthy")
    (shim,) = manager.shims()
    manager.restart(FAULT="exec.asked:stop:10")  # not before it answers
    try:
        await_that(lambda: lives.process_state(manager.pid) == "T", SOON_S, "it is about to ask")
        asked = whole_pipes(manager.pid)
        assert asked
        lives.hold_still(shim)
        os.kill(manager.pid, signal.SIGCONT)
        await_health(manager, "late", "unhealthy", but={shim})
        assert asked <= whole_pipes(manager.pid)
        os.kill(shim, signal.SIGCONT)
        await_that(lambda: not asked & whole_pipes(manager.pid), SOON_S, "the pipe is closed")
        await_health(manager, "late", "healthy")
    finally:
        os.kill(shim, signal.SIGCONT)
        manager.restart()


def whole_pipes(pid: int) -> set[str]:
    """Pipes of which a process has both ends."""
    named = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            named.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {name for name in named if name.startswith("pipe:") and named.count(name) > 1}


def test_a_paused_container_is_not_asked(manager: Lighterd, switch: Path) -> None:
    run(manager, "web", switch, "--health-cmd", "echo asked >> /switch/asked")
    await_health(manager, "web", "healthy")
    manager.ctl("pause", "web", check=True)
    asked = (switch / "asked").stat().st_size
    time.sleep(1)
    assert (switch / "asked").stat().st_size == asked
    assert health(manager, "web")["status"] == "healthy"
    manager.ctl("resume", "web", check=True)
    await_that(lambda: (switch / "asked").stat().st_size > asked, SOON_S, "it is asked again")
    assert health(manager, "web")["failing_streak"] == 0


def test_a_container_that_is_started_again_begins_anew(manager: Lighterd, switch: Path) -> None:
    (switch / "up").touch()
    probe = ("--health-cmd", "test -e /switch/up", "--health-retries", "1000")
    run(manager, "web", switch, *probe, "--restart", "always")
    await_health(manager, "web", "healthy")
    (switch / "up").unlink()
    manager.ctl("restart", "-t", "0", "web", check=True)
    assert lives.task(manager, "web")["health"] == "starting"
    (switch / "up").touch()
    await_health(manager, "web", "healthy")


def test_flags_that_exclude_each_other(manager: Lighterd) -> None:
    refused = manager.ctl(
        *("create", "--no-healthcheck", "--health-retries", "2", images.REFERENCE)
    )
    assert refused.returncode == 2
    assert b"--no-healthcheck: it conflicts" in refused.stderr
