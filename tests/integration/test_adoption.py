"""What a manager does with what it finds: adoption, interrupted adoption, lost and mute shims."""

import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from lighter.daemon.tasks.bundle import Bundle
from lighter.proto import errors, shim_api
from lighter.proto.paths import Root, State
from lighter.shim import shim
from tests import cgroups, lives
from tests.harness import Lighterd, await_that, kill_by_pidfd
from tests.lives import NO_STDIO, ask
from tests.processes import spawners


def shim_of(lighterd: Lighterd, container: str) -> int:
    shims = ask(lighterd, "system.shims")["shims"]
    return next(int(row["pid"]) for row in shims if row["id"] == container)


def spawner_of(lighterd: Lighterd) -> int:
    """The spawner that serves its manager, of whichever manager it is the child; 0 for none."""
    return next(iter(spawners(lighterd.instance)), 0)


def await_spawner(lighterd: Lighterd, which: str, old: int = 0) -> int:
    """One that serves the manager, and is not the old one."""
    found = 0

    def is_there() -> bool:
        nonlocal found
        found = spawner_of(lighterd)
        return found not in (0, old)

    await_that(is_there, 30, which)
    return found


# adoption


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [200])
def test_the_next_manager_adopts_everything(lighterd: Lighterd, busybox: str, count: int) -> None:
    pids = {f"c{n}": lives.begin(lighterd, busybox, f"c{n}", "sleep", "1000") for n in range(count)}
    which = {"id": "c0", "exec_id": "x"}
    ask(lighterd, "tasks.exec", args=["sleep", "1000"], **which, **NO_STDIO)
    lives.define(lighterd, busybox, "created", "true")
    pids["created"] = ask(lighterd, "tasks.create", id="created", **NO_STDIO)["pid"]
    ask(lighterd, "tasks.pause", id="c1")
    shims = sorted(lighterd.shims())
    lighterd.kill9()
    began = time.monotonic()
    lighterd.start()
    assert time.monotonic() - began < 20  # a second or two; F38 allows it ten with 100

    def found() -> dict[str, str]:
        return {row["id"]: row["status"] for row in ask(lighterd, "tasks.list")["tasks"]}

    wanted = dict.fromkeys(pids, "running") | {"created": "created", "c1": "paused"}
    await_that(lambda: found() == wanted, 30, "all are listed as before")
    # What rows alone say, for a while.
    await_that(
        lambda: ask(lighterd, "system.health")["shims"] == len(pids), 30, "all shims said hello"
    )
    print(f"{count} containers are back after {time.monotonic() - began:.2f} s")
    assert sorted(lighterd.shims()) == shims
    assert {row["id"]: row["pid"] for row in ask(lighterd, "tasks.list")["tasks"]} == pids
    ask(lighterd, "tasks.kill", id="c0", exec_id="x", signal=signal.SIGTERM, all=False)
    assert ask(lighterd, "tasks.wait", **which)["exit_status"] == 128 + signal.SIGTERM
    ask(lighterd, "tasks.resume", id="c1")
    ask(lighterd, "tasks.start", id="created")
    assert ask(lighterd, "tasks.wait", id="created", exec_id="")["exit_status"] == 0


def test_a_shim_is_told_that_the_next_manager_listens(lighterd: Lighterd, busybox: str) -> None:
    """One that is stopped has what it was told still before it (proc_pid_status(5))."""
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    (pid,) = lighterd.shims()

    def is_told() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return bool(int(fields["ShdPnd"], 16) >> (shim_api.LISTENING - 1) & 1)

    lighterd.kill9()
    lives.hold_still(pid)
    try:
        assert not is_told()
        lighterd.start()
        assert is_told()
    finally:
        os.kill(pid, signal.SIGCONT)
    await_that(lambda: ask(lighterd, "system.health")["shims"] == 1, 30, "it has come")


@pytest.mark.parametrize("how", ["run", "run --rm", "exec", "attach"])
def test_an_attached_ctl_outlives_its_manager(lighterd: Lighterd, busybox: str, how: str) -> None:
    script = ["sh", "-c", "echo ready; cat; exit 5"]
    if how.startswith("run"):
        argv = [*how.split(), "-i", "--name", "c", busybox, *script]
    elif how == "exec":
        lives.begin(lighterd, busybox, "c", "sleep", "1000")
        argv = ["exec", "-i", "c", *script]
    else:
        forever = ["sh", "-c", "while read line; do echo $line; test $line = end && exit 5; done"]
        lives.begin(lighterd, busybox, "c", *forever, stdin_open=True)
        argv = ["tasks", "attach", "c"]
    ctl = subprocess.Popen(
        lighterd.ctl_argv(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert ctl.stdin is not None and ctl.stdout is not None
    if how == "attach":
        ctl.stdin.write(b"ready\n")
    assert ctl.stdout.read(6) == b"ready\n"
    for line in (b"one\n", b"two\n"):
        lighterd.kill9()
        ctl.stdin.write(line)
        assert ctl.stdout.read(4) == line
        lighterd.start()
    out, _ = ctl.communicate(b"end\n", timeout=30)
    assert (ctl.returncode, out) == (5, b"end\n")
    if how == "run --rm":
        await_that(
            lambda: not ask(lighterd, "containers.list", cursor="", limit=9)["containers"],
            10,
            "it is removed",
        )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [50])
def test_f38_a_manager_killed_during_its_own_start_makes_progress(
    lighterd: Lighterd, busybox: str, count: int
) -> None:
    for name in ("running", "lost", "ended", "exits"):
        lives.begin(lighterd, busybox, name, "sleep", "1000")
    lives.begin(lighterd, busybox, "removed", "sleep", "1000", auto_remove=True)
    ask(lighterd, "tasks.kill", id="ended", exec_id="", signal=9, all=False)
    ask(lighterd, "tasks.wait", id="ended", exec_id="")
    lost = shim_of(lighterd, "lost")
    pids = {row["id"]: row["pid"] for row in ask(lighterd, "tasks.list")["tasks"]}
    lighterd.kill9()
    lives.kill_stopped(lost)
    for name in ("exits", "removed"):
        os.kill(pids[name], signal.SIGKILL)
    points = [
        *(f"recover.entry:abort:{n}" for n in range(1, 6)),
        *("start.locked:abort", "start.recovered:abort", "settle.freed:abort"),
        *("start.completed:abort", "settle.exit-recorded:abort", "start.tidied:abort"),
        *("file.written:abort", "file.written:abort:2", "network.recovering:abort"),
    ]
    files: list[int] = []
    deaths = 0
    for n in range(count):
        lighterd.launch(FAULT=points[n % len(points)])
        assert lighterd.process is not None
        try:
            lighterd.wait_ready()
        except AssertionError:
            pass  # it is to die, before it is ready or behind
        # One whose point is passed no more has nothing left to do there.
        finished = point_is_over(lighterd, points[n % len(points)])
        if not finished:
            assert lighterd.process.wait(20) == -signal.SIGKILL
            deaths += 1
        else:
            lighterd.kill9()
        files.append(sum(len(names) for _, _, names in os.walk(lighterd.base)))
    # Seven points are passed in each start, and a recovered task's as long as there are so many.
    assert deaths >= count // 2, deaths
    # Each has got further, though none of them ended in peace.
    assert recorded_exits(lighterd) == ["ended", "exits", "lost", "removed"]
    lighterd.start()
    status = {row["id"]: row for row in ask(lighterd, "tasks.list")["tasks"]}
    assert status["running"]["status"] == "running"
    row = lives.await_task(lighterd, "lost", "stopped")
    assert (row["exit_status"], row["cause"]) == (137, "lost-shim")
    assert lives.await_task(lighterd, "exits", "stopped")["exit_status"] == 137
    await_that(lambda: lives.task(lighterd, "removed")["status"] is None, 30, "--rm is removed")
    events = lives.history(lighterd)
    assert not lives.check_history(events, alive=frozenset({"running"}))
    exits = sorted(e["event"]["container_id"] for e in events if e["topic"] == "/tasks/exit")
    assert exits == ["ended", "exits", "lost", "removed"]
    assert max(files) <= files[0] + 5, files
    assert not list(lighterd.state.glob("*.tmp"))


def recorded_exits(lighterd: Lighterd) -> list[str]:
    """Whose ends are in the database, read without its manager."""
    with closing(sqlite3.connect(f"file:{lighterd.root}/lighter.db?mode=ro", uri=True)) as opened:
        rows = opened.execute("SELECT body FROM events WHERE topic = '/tasks/exit'").fetchall()
    return sorted(msgpack.unpackb(row[0])["container_id"] for row in rows)


def point_is_over(lighterd: Lighterd, fault: str) -> bool:
    """Whether a manager that is ready will not die any more of this fault."""
    assert lighterd.process is not None
    if fault.startswith(("settle", "start.tidied")):
        try:
            lighterd.process.wait(1.5)
        except subprocess.TimeoutExpired:
            return True
        return False
    return lighterd.process.poll() is None


# claims


@pytest.mark.parametrize("count", [1000, pytest.param(20000, marks=pytest.mark.soak)])
def test_f05_claim_and_withdrawal_have_one_winner(
    tmp_path: Path, count: int, record_property: Callable[[str, object], None]
) -> None:
    """The shim's first act against a recovering manager's: never both, never neither."""
    state, root = State(str(tmp_path / "s")), Root(str(tmp_path / "r"))
    barrier = threading.Barrier(2)
    order: dict[str, Any] = {}
    claimed: list[bool] = []

    def dawdle() -> None:
        """Up to 200 microseconds without the GIL, so that each is the first now and then."""
        time.sleep(random.random() * 2e-4)

    def race() -> None:
        for _ in range(count):
            barrier.wait()
            dawdle()
            claimed.append(shim.claim(order, 1, "boot"))
            barrier.wait()

    racer = threading.Thread(target=race, daemon=True)  # a failure leaves it at the barrier
    racer.start()
    withdrawn = []
    for n in range(count):
        bundle = Bundle(state, root, "default", "c")
        incarnation = f"{n:016x}"
        bundle.write(b"{}", incarnation, "")
        order.update(
            incarnation=incarnation, namespace="default", id="c", exit_record=bundle.exit_record
        )
        order.update(claim=bundle.claim(incarnation), record=bundle.record)
        barrier.wait()
        dawdle()
        withdrawn.append(bundle.withdraw(incarnation))
        barrier.wait()
        assert bundle.withdraw(incarnation) is withdrawn[-1], "the verdict stands"
        bundle.remove()
    racer.join()
    assert [not won for won in withdrawn] == claimed
    assert any(withdrawn) and any(claimed)
    record_property("withdrawn", f"{sum(withdrawn)} of {count} races")


# the spawner


def test_a_killed_spawner_is_replaced_and_its_shims_stay(
    lighterd: Lighterd, busybox: str, record_property: Callable[[str, object], None]
) -> None:
    lives.begin(lighterd, busybox, "old", "sleep", "1000")
    shims, old = lighterd.shims(), spawner_of(lighterd)
    kill_by_pidfd(old)
    killed = time.monotonic()
    new = await_spawner(lighterd, "a new spawner", old)
    record_property("s until a new spawner", f"{time.monotonic() - killed:.2f}")
    kill_by_pidfd(new)
    # Asked in the gap, a create waits for the next spawner.
    lives.begin(lighterd, busybox, "new", "sleep", "1000")
    assert set(shims) < set(lighterd.shims())
    assert lives.task(lighterd, "old")["status"] == "running"
    for n in range(5):
        kill_by_pidfd(await_spawner(lighterd, f"spawner {n + 2}"))
    assert {row["status"] for row in ask(lighterd, "tasks.list")["tasks"]} == {"running"}


@pytest.mark.soak
def test_a_spawner_that_does_not_answer_is_replaced(lighterd: Lighterd, busybox: str) -> None:
    mute = spawner_of(lighterd)
    lives.define(lighterd, busybox, "c", "sleep", "1000")
    lives.hold_still(mute)
    with lighterd.client() as client:
        with pytest.raises(errors.Unavailable):
            client.call("tasks", "create", id="c", timeout_s=60, **NO_STDIO)
        client.call("tasks", "create", id="c", timeout_s=60, **NO_STDIO)
    assert spawner_of(lighterd) not in (0, mute)


def test_a_stopped_spawner_does_not_keep_the_next_manager_out(
    lighterd: Lighterd, busybox: str
) -> None:
    """It holds the locks of its dead manager, and would for ever."""
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    stopped = spawner_of(lighterd)
    lives.hold_still(stopped)
    assert lighterd.process is not None
    lighterd.process.kill()
    lighterd.process.wait(10)
    lighterd.start()
    await_that(lambda: spawner_of(lighterd) not in (0, stopped), 30, "a spawner of its own")
    await_that(lambda: lives.process_state(stopped) in ("", "Z"), 10, "the old one is ended")
    lives.await_task(lighterd, "c", "running")


# lost and mute shims


def test_f41_a_lost_shim_costs_its_container_and_nothing_else(
    lighterd: Lighterd, busybox: str
) -> None:
    other = lives.begin(lighterd, busybox, "other", "sleep", "1000")
    pid = lives.begin(lighterd, busybox, "c", "sh", "-c", "sleep 1000 & wait")
    which = {"id": "c", "exec_id": "x"}
    ask(lighterd, "tasks.exec", args=["sleep", "1000"], **which, **NO_STDIO)
    processes = [int(row["pid"]) for row in ask(lighterd, "tasks.pids", id="c")["processes"]]
    assert len(processes) == 3
    os.kill(shim_of(lighterd, "c"), signal.SIGKILL)
    began = time.monotonic()
    ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "lost-shim")
    assert ask(lighterd, "tasks.wait", **which)["cause"] == "lost-shim"
    assert time.monotonic() - began < 15
    assert all(lives.process_state(process) in ("", "Z") for process in processes)
    assert ask(lighterd, "tasks.delete", id="c", exec_id="", force=False) == ended
    ask(lighterd, "containers.delete", id="c", force=False)
    assert not (lighterd.state / "tasks/default/c").exists()
    assert lives.begin(lighterd, busybox, "c", "true") != pid
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 0
    assert lives.task(lighterd, "other")["pid"] == other
    events = lives.history(lighterd)
    assert not lives.check_history(events, alive=frozenset({"other"}))
    told = next(e for e in events if e["topic"] == "/tasks/exit" and not e["event"]["exec_id"])
    assert told["event"]["pid"] == pid


@pytest.mark.parametrize("lost", ["init", "shim"])
def test_f41_who_shares_a_pid_namespace_with_a_lost_container_is_told_of(
    lighterd: Lighterd, busybox: str, lost: str
) -> None:
    """With the namespace's init the kernel ends all that is in it: each is an exit of its own."""
    pid = lives.begin(lighterd, busybox, "owner", "sleep", "1000")
    for name in ("joins", "runs-on"):
        shares = ["--pid", "container:owner"] if name == "joins" else ["--ipc", "container:owner"]
        lighterd.ctl("run", "-d", *shares, "--name", name, busybox, "sleep", "1000", check=True)
    which = {"id": "joins", "exec_id": "x"}
    ask(lighterd, "tasks.exec", args=["sleep", "1000"], **which, **NO_STDIO)
    os.kill(pid if lost == "init" else shim_of(lighterd, "owner"), signal.SIGKILL)
    ended = {name: ask(lighterd, "tasks.wait", id=name, exec_id="") for name in ("owner", "joins")}
    assert {name: (end["exit_status"], end["cause"]) for name, end in ended.items()} == {
        "owner": (137, "" if lost == "init" else "lost-shim"),
        "joins": (137, ""),
    }
    assert ask(lighterd, "tasks.wait", **which)["exit_status"] == 137
    assert lives.task(lighterd, "runs-on")["status"] == "running"
    for name in ended:
        assert ask(lighterd, "tasks.delete", id=name, exec_id="", force=False) == ended[name]
    assert not lives.check_history(lives.history(lighterd), alive=frozenset({"runs-on"}))


def test_f43_a_shim_that_the_oom_killer_ends_is_a_lost_one(
    lighterd: Lighterd, busybox: str
) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    shim = shim_of(lighterd, "c")
    which = {"id": "c", "exec_id": ""}
    with cgroups.without_memory(shim, f"lighter-starved-{lighterd.instance}") as group:
        # Whatever it is asked, it writes to a page that it shares with its spawner.
        with suppress(errors.LighterError):
            ask(lighterd, "tasks.resize", rows=1, cols=1, **which)
        ended = ask(lighterd, "tasks.wait", **which)
        assert cgroups.oom_kills(group) == 1
    assert (ended["exit_status"], ended["cause"]) == (137, "lost-shim")
    await_that(lambda: lives.process_state(shim) == "", 10, "its spawner has reaped it")


def start_after_kill9(lighterd: Lighterd) -> float:
    """Seconds until the next manager is ready."""
    lighterd.kill9()
    began = time.monotonic()
    lighterd.start()
    return time.monotonic() - began


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_f43_a_stopped_shim_is_shown_and_holds_nobody(
    lighterd: Lighterd, busybox: str, count: int
) -> None:
    for n in range(count):
        lives.begin(lighterd, busybox, f"c{n}", "sleep", "1000")
    all_answer_s = start_after_kill9(lighterd)
    mute = shim_of(lighterd, "c0")
    lives.hold_still(mute)
    for restarted in (False, True):
        if restarted:
            # It is ready before this one is adopted, which would take for ever.
            assert start_after_kill9(lighterd) < 2 * all_answer_s + 3
            assert ask(lighterd, "system.health", but={mute})["shims"] < count
        began = time.monotonic()
        with lighterd.client() as client:
            rows = {row["id"]: row for row in client.call("tasks", "list")["tasks"]}
            assert time.monotonic() - began < lives.LISTED_S
            assert len(rows) == count
            assert rows["c0"]["status"] == "unknown" and rows["c0"]["reason"]
            assert rows["c1"]["status"] == "running"
            client.call("tasks", "kill", id="c1", exec_id="", signal=signal.SIGCONT, all=False)
            with pytest.raises((errors.DeadlineExceeded, errors.Unavailable)):
                client.call("tasks", "kill", id="c0", exec_id="", signal=signal.SIGCONT, all=False)
            assert client.call("tasks", "get", id="c1")["task"]["status"] == "running"
        assert lives.process_state(mute) == "T", "it is not proof of death: the shim is left alone"
    os.kill(mute, signal.SIGCONT)
    lives.await_task(lighterd, "c0", "running")
    ask(lighterd, "tasks.kill", id="c0", exec_id="", signal=signal.SIGKILL, all=False)
    assert ask(lighterd, "tasks.wait", id="c0", exec_id="")["exit_status"] == 137


@pytest.mark.parametrize("restarts", [False, True], ids=["this manager", "the next"])
def test_f56_a_lost_shim_whose_bundle_was_removed_leaves_nothing(
    lighterd: Lighterd, busybox: str, restarts: bool
) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000")
    group = cgroups.of_process(pid, "memory")
    lost = shim_of(lighterd, "c")
    for path in (lighterd.state / "tasks/default/c").iterdir():
        if path.is_file():
            path.unlink()
    if restarts:
        lighterd.kill9()
    os.kill(lost, signal.SIGKILL)
    if restarts:
        lighterd.start()
    ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "lost-shim")
    assert lives.process_state(pid) in ("", "Z")
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    assert not group.exists()


def test_f43_a_stopped_shim_can_be_deleted_by_force(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd().start()
    image = lighterd.import_busybox()
    lives.begin(lighterd, image, "c", "sleep", "1000")
    mute = shim_of(lighterd, "c")
    lives.hold_still(mute)
    # A create that is stopped half way, and whose manager is dead, is no task; its container is
    # removed with it.
    lighterd.restart(FAULT="shim.rootfs-mounted:stop")
    lives.define(lighterd, image, "half", "true", but={mute})
    with pytest.raises(lives.NoAnswer) as raised:
        ask(lighterd, "tasks.create", id="half", but={mute}, **NO_STDIO)
    assert raised.value.who == "shim"
    lighterd.kill9()
    lighterd.start()
    # The create's shim stands too, or it has been killed by now.
    assert lives.task(lighterd, "half", but=lighterd.shims())["status"] is None
    with lighterd.client() as client:
        with pytest.raises(errors.FailedPrecondition):
            client.call("containers", "delete", id="half", force=False)
        for name in ("half", "c"):
            client.call("containers", "delete", id=name, force=True, timeout_s=60)
    lives.leftovers(lighterd)
