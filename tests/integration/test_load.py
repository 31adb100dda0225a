"""Load: what a manager holds stays level over many lives, many clients, many containers (F48).

Also a container that takes all it can get (F46).
"""

import concurrent.futures
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.wire import sockets
from lighter.proto import errors
from tests import cgroups, lives, zeromq
from tests.client import Client
from tests.harness import Lighterd, await_that
from tests.integration.test_adoption import spawner_of
from tests.integration.test_many import begin_all
from tests.integration.test_shim_memory import database_bytes, descriptors, rollup, threads
from tests.lives import NO_STDIO, ask

CLIENTS = 200
PIDS = 40
ANSWER_S = 10.0
FEW = 5
KIB = 1024


def slope(samples: list[float]) -> float:
    """Growth per sample: the median of that between any two (Theil and Sen), so that a page or a
    file that comes once is none."""
    pairs = combinations(enumerate(samples), 2)
    return statistics.median((y - x) / (m - n) for (n, x), (m, y) in pairs)


def test_a_slope_is_of_most_samples() -> None:
    assert slope([3.0] * 9) == 0
    assert slope([0.0, 0, 0, 0, 50, 50, 50, 50]) == pytest.approx(25 / 3)
    assert slope([float(n) for n in range(9)]) == 1
    assert slope([1.0, 2, 3, 99, 5, 6, 7]) == 1, "one that stands out"


# -- many lives


def one_life(client: Client, image: str, name: str) -> None:
    client.call("containers", "create", id=name, image=image, args=["true"])
    client.call("tasks", "create", id=name, **NO_STDIO)
    client.call("tasks", "start", id=name)
    client.call("tasks", "wait", id=name, exec_id="")
    client.call("tasks", "delete", id=name, exec_id="", force=False)
    client.call("containers", "delete", id=name, force=False)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("rounds", [45, pytest.param(2000, marks=pytest.mark.soak)])
def test_f48_what_a_manager_holds_stays_level_over_lives(
    lighterd: Lighterd, busybox: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """Descriptors, threads, memory, of the manager and of its spawner; the database grows by what
    the event log keeps of a life."""
    at_once, each = 4, 4
    held: list[dict[str, float]] = []

    def lead(number: int) -> None:
        with lighterd.client() as client:
            for _ in range(each):
                one_life(client, busybox, f"c{number}")

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for _ in range(rounds):
            list(pool.map(lead, range(at_once)))
            await_that(lambda: not lighterd.shims(), 30, "the shims have ended")
            held.append(held_by(lighterd))
    level = held[len(held) // 3 :]  # caches fill first
    grown = {what: slope([one[what] for one in level]) for what in level[0]}
    per_life = {what: grown[what] / (at_once * each) for what in grown if "bytes" in what}
    record_property("bytes that a life leaves", {what: round(per_life[what]) for what in per_life})
    for what in grown.keys() - per_life.keys():
        # A thread or two that came late, however long it goes on.
        assert grown[what] * len(level) <= FEW, (what, held)
    assert per_life.pop("database bytes") < 8 * KIB, held
    for what in per_life:
        assert per_life[what] < (1 if rounds > 100 else 8) * KIB, (what, held)
    lives.leftovers(lighterd)


def held_by(lighterd: Lighterd) -> dict[str, float]:
    """What a manager and its spawner hold now, and how large the database is."""
    held: dict[str, float] = {"database bytes": database_bytes(lighterd.root)}
    for who, pid in ("manager", lighterd.pid), ("spawner", spawner_of(lighterd)):
        held[f"{who}'s bytes"] = rollup(pid)["Rss"]
        held[f"{who}'s descriptors"] = descriptors(pid)
        held[f"{who}'s threads"] = threads(pid)
    return held


# -- many clients, many containers


def work_of(number: int, client: Client, image: str) -> None:
    """What one client of many does, with names of its own."""

    def call(service: str, method: str, **body: object) -> Any:
        return client.call(service, method, timeout_s=60, **body)

    name = f"c{number}"
    match number % 5:
        case 0:
            assert call("tasks", "list")["tasks"] == []
        case 1:
            call("containers", "create", id=name, image=image, args=["true"])
            assert call("containers", "get", id=name)["container"]["id"] == name
            call("containers", "delete", id=name, force=False)
        case 2:
            tag = f"docker.io/library/{name}:1"
            call("images", "tag", source=image, name=tag, force=False)
            assert call("images", "get", name=tag)["image"]["name"] == tag
            call("images", "delete", name=tag)
        case 3:
            call("namespaces", "create", name=name, labels={})
            call("namespaces", "delete", name=name)
        case 4:
            with pytest.raises(errors.NotFound):
                call("tasks", "start", id=name)
            body = {"since": 0, "follow": False}
            told = client.stream("events", "subscribe", timeout_s=60, **body)
            assert any(event["topic"].startswith("/images/") for event in told)


def listed(client: Client) -> list[set[str]]:
    """What a manager has, by name."""
    containers = client.call("containers", "list", cursor="", limit=500)["containers"]
    images = client.call("images", "list", cursor="", limit=500, filters=[])["images"]
    namespaces = client.call("namespaces", "list")["namespaces"]
    return [
        {one["id"] for one in containers},
        {one["name"] for one in images},
        {one["name"] for one in namespaces},
    ]


def test_200_clients_are_answered_and_leave_nothing(lighterd: Lighterd, busybox: str) -> None:
    with lighterd.client() as client:
        before, had = client.call("system", "health"), listed(client)
    with sockets.context() as context, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(Client(lighterd.address, timeout_s=60, context=context))
            for _ in range(CLIENTS)
        ]
        all_here = threading.Barrier(CLIENTS)

        def work_with_all(number: int) -> None:
            all_here.wait(60)
            work_of(number, clients[number], busybox)

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(work_with_all, range(CLIENTS)))
        assert clients[0].call("system", "health")["clients"] >= CLIENTS

    def level() -> bool:
        with lighterd.client() as client:
            now = client.call("system", "health")
        return now["clients"] <= before["clients"] and now["fds"] <= before["fds"] + 2

    await_that(level, 30, "their places and descriptors are given back")
    with lighterd.client() as client:
        assert listed(client) == had


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_500_containers(
    lighterd: Lighterd, busybox: str, record_property: Callable[[str, object], None]
) -> None:
    names = [f"c{number}" for number in range(500)]
    begin_all(lighterd, busybox, names)
    lighterd.kill9()
    began = time.monotonic()
    lighterd.start()
    await_that(
        lambda: {row["status"] for row in ask(lighterd, "tasks.list")["tasks"]} == {"running"},
        120,
        "all are adopted",
    )
    record_property("s until all are adopted", round(time.monotonic() - began, 2))
    for name in names:
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)


ROUTER = """
import os, resource, sys
from lighter.daemon.wire import sockets
context = sockets.context()
router = sockets.bind_router(context, sys.argv[1], 0o600, -1, 64)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.dup(0)
except OSError:
    print("full", flush=True)
sys.stdin.read()
"""


def test_f58_libzmq_aborts_when_it_has_no_descriptor_for_a_connection() -> None:
    """Why a manager may never come to that; when this fails, daemon/limits.py may do less."""
    path = f"/tmp/lighter-router-{os.getpid()}"
    argv = [sys.executable, "-I", "-c", ROUTER, path]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        with subprocess.Popen(argv, **pipes) as router, sockets.context() as context:
            assert router.stdout is not None and router.stderr is not None
            assert router.stdout.readline() == b"full\n"
            dealer = zeromq.connect_dealer(context, path, 64)
            try:
                assert router.wait(20) == -signal.SIGABRT
            finally:
                dealer.close(0)
            assert b"Too many open files" in router.stderr.read()
    finally:
        Path(path).unlink(missing_ok=True)


# -- a container that takes all it can get


def test_f46_a_fork_bomb_stays_in_its_limit(lighterd: Lighterd, busybox: str) -> None:
    """Others start, run and are listed meanwhile; it ends like any other, to its last process."""
    old = lives.begin(lighterd, busybox, "old", "sleep", "1000")
    # Only an interactive shell goes on when it cannot fork.
    script = "yes 'bomb() { bomb | bomb & }; bomb' | sh -i >/dev/null 2>&1"
    pid = lives.begin(lighterd, busybox, "bomb", "sh", "-c", script, limits={"pids": PIDS})
    cgroup = cgroups.of_process(pid, "pids")
    refused = cgroup / "pids.events"
    await_that(lambda: "max 0" not in refused.read_text(), 30, "the kernel has refused it one")
    for number in range(5):
        assert len(cgroups.members(cgroup)) <= PIDS
        began = time.monotonic()
        done = lighterd.ctl("run", "--rm", "--name", f"c{number}", busybox, "true", timeout=60)
        assert done.returncode == 0, done.stderr
        assert {row["id"] for row in ask(lighterd, "tasks.list")["tasks"]} == {"old", "bomb"}
        assert time.monotonic() - began < ANSWER_S
    members = cgroups.members(cgroup)
    ask(lighterd, "tasks.kill", id="bomb", exec_id="", signal=signal.SIGKILL, all=False)
    assert ask(lighterd, "tasks.wait", id="bomb", exec_id="")["exit_status"] == 137
    await_that(
        lambda: not [one for one in members if lives.process_state(one) not in ("", "Z")],
        30,
        "all of it has ended",
    )
    assert lives.process_state(old) == "S"
    for name in ("bomb", "old"):
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)
