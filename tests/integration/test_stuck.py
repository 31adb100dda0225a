"""F44: runtimes that hang in each of their calls, processes that SIGKILL does not end, frozen
cgroups. Nobody else waits, deadlines hold, and what is stuck is shown with its reason.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from lighter.proto.paths import cgroup_path
from tests import cgroups, lives
from tests.harness import Lighterd, await_that
from tests.integration.test_adoption import shim_of
from tests.lives import NO_STDIO, ask
from tests.stuckfs import StuckFs

RUNTIME_S = 5
CONFIG = f'version = 3\n[plugins."io.lighter.v1".runtimes.runc]\ntimeout_s = {RUNTIME_S}\n'
# Generous for two cores and their neighbours; without a deadline of ours it would be for ever.
LATEST_S = 25.0
SOON_S = float(RUNTIME_S)  # who waits for the runtime takes longer


@pytest.fixture
def lighterd(make_lighterd: Callable[..., Lighterd]) -> Lighterd:
    """One whose runtime has RUNTIME_S for each call."""
    return make_lighterd(config=CONFIG).start()


@pytest.fixture
def busybox(lighterd: Lighterd) -> str:
    return lighterd.import_busybox()


class Hanging:
    """A runtime that does `act` instead of its work in the calls `verbs`, while it is asked to."""

    def __init__(self, base: Path, verbs: str, act: str = "exec sleep 1000") -> None:
        self.flag = base / "hangs"
        self.pids = base / "pids"
        self.program = base / "hanging-runtime"
        words = "|".join(f'*" {verb} "*' for verb in verbs.split())
        self.program.write_text(
            f'#!/bin/sh\ncase " $* " in {words}) if [ -e {self.flag} ]; then\n'
            f'echo $$ >>{self.pids}; {act}; fi;; esac\nexec runc "$@"\n'
        )
        self.program.chmod(0o755)

    def hang(self) -> None:
        self.flag.write_text("")

    def work(self) -> None:
        self.flag.unlink()

    def running(self) -> list[int]:
        pids = self.pids.read_text().split() if self.pids.exists() else []
        return [pid for pid in map(int, pids) if lives.process_state(pid) not in ("", "Z")]


@contextmanager
def nobody_else_waits(lighterd: Lighterd, busybox: str) -> Iterator[None]:
    """While the block runs, lists answer at once and another container lives its life."""
    slowest = 0.0
    stop = threading.Event()
    failures: list[BaseException] = []

    def watch() -> None:
        nonlocal slowest
        try:
            while not stop.is_set():
                began = time.monotonic()
                ask(lighterd, "tasks.list")
                ask(lighterd, "containers.list", cursor="", limit=10)
                slowest = max(slowest, time.monotonic() - began)
                stop.wait(0.1)
        except BaseException as err:
            failures.append(err)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
        lives.begin(lighterd, busybox, "other", "true")
        assert ask(lighterd, "tasks.wait", id="other", exec_id="")["exit_status"] == 0
        ask(lighterd, "containers.delete", id="other", force=True)
    finally:
        stop.set()
        watcher.join()
    assert not failures, failures
    assert slowest < SOON_S


def refused(lighterd: Lighterd, kind: type[errors.LighterError], call: str, **body: Any) -> str:
    """The message of what `call` is answered with, in time."""
    began = time.monotonic()
    with pytest.raises(kind) as answer, lighterd.client() as client:
        client.call(*call.split("."), timeout_s=60, **body)
    assert time.monotonic() - began < LATEST_S
    return answer.value.message


def cgroups_of(lighterd: Lighterd, container: str) -> list[Path]:
    path = cgroup_path(lighterd.instance, "default", container).lstrip("/")
    places = [cgroups.MOUNT / path, *(top / path for top in cgroups.MOUNT.iterdir())]
    return [place for place in places if place.is_dir()]


def nothing_is_left(lighterd: Lighterd) -> None:
    ask(lighterd, "containers.delete", id="c", force=True)
    lives.leftovers(lighterd)
    assert not cgroups_of(lighterd, "c")
    assert not lives.check_history(lives.history(lighterd))


def test_f44_create_hangs(lighterd: Lighterd, busybox: str) -> None:
    runtime = Hanging(lighterd.base, "create")
    lives.define(lighterd, busybox, "c", "true", runtime=str(runtime.program))
    runtime.hang()
    with nobody_else_waits(lighterd, busybox):
        message = refused(lighterd, errors.DeadlineExceeded, "tasks.create", id="c", **NO_STDIO)
    assert f"{runtime.program} create: no answer within {RUNTIME_S} s" in message
    assert not runtime.running()
    assert lives.task(lighterd, "c")["status"] is None
    runtime.work()
    ask(lighterd, "tasks.create", id="c", **NO_STDIO)
    ask(lighterd, "tasks.start", id="c")
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 0
    nothing_is_left(lighterd)


def test_f44_start_hangs(lighterd: Lighterd, busybox: str) -> None:
    runtime = Hanging(lighterd.base, "start")
    lives.define(lighterd, busybox, "c", "sleep", "1000", runtime=str(runtime.program))
    ask(lighterd, "tasks.create", id="c", **NO_STDIO)
    runtime.hang()
    with nobody_else_waits(lighterd, busybox):
        message = refused(lighterd, errors.DeadlineExceeded, "tasks.start", id="c")
    assert "start: no answer within" in message
    assert not runtime.running()
    assert lives.task(lighterd, "c")["status"] == "created"
    runtime.work()
    ask(lighterd, "tasks.start", id="c")
    assert lives.task(lighterd, "c")["status"] == "running"
    nothing_is_left(lighterd)


def test_f44_a_kill_ends_what_a_hanging_start_holds(lighterd: Lighterd, busybox: str) -> None:
    runtime = Hanging(lighterd.base, "start")
    lives.define(lighterd, busybox, "c", "sleep", "1000", runtime=str(runtime.program))
    ask(lighterd, "tasks.create", id="c", **NO_STDIO)
    runtime.hang()
    with lighterd.client() as client:
        client.stream("tasks", "start", id="c")
        await_that(runtime.running, 10, "the runtime hangs")
        ask(lighterd, "tasks.kill", id="c", exec_id="", signal=9, all=False)
    assert lives.await_task(lighterd, "c", "stopped")["exit_status"] == 137
    nothing_is_left(lighterd)


def test_f44_exec_hangs(lighterd: Lighterd, busybox: str) -> None:
    runtime = Hanging(lighterd.base, "exec")
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000", runtime=str(runtime.program))
    which = {"id": "c", "exec_id": "x"}
    runtime.hang()
    with nobody_else_waits(lighterd, busybox):
        message = refused(
            lighterd, errors.DeadlineExceeded, "tasks.exec", args=["true"], **which, **NO_STDIO
        )
    assert "exec: no answer within" in message
    assert not runtime.running()
    assert lives.process_state(pid) == "S"
    runtime.work()
    ask(lighterd, "tasks.exec", args=["true"], **which, **NO_STDIO)
    assert ask(lighterd, "tasks.wait", **which)["exit_status"] == 0
    nothing_is_left(lighterd)


def test_an_exec_is_kept_when_its_client_goes_before_the_runtime_has_answered(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """F60: what succeeds late is there, whoever has given it up."""
    lighterd = make_lighterd().start()
    busybox = lighterd.import_busybox()
    flag = lighterd.base / "hangs"
    runtime = Hanging(lighterd.base, "exec", act=f"while [ -e {flag} ]; do sleep 0.05; done")
    lives.begin(lighterd, busybox, "c", "sleep", "1000", runtime=str(runtime.program))
    exec_ = {"id": "c", "exec_id": "x", "args": ["sleep", "1000"], **NO_STDIO}
    clients = ask(lighterd, "system.health")["clients"]
    runtime.hang()
    with lighterd.client() as client, pytest.raises(errors.DeadlineExceeded):
        client.call("tasks", "exec", timeout_s=3, **exec_)
    await_that(lambda: ask(lighterd, "system.health")["clients"] <= clients, 20, "it is gone")
    assert runtime.running()

    # Somebody else cannot have its id meanwhile, and in the end it is there.
    with pytest.raises(errors.AlreadyExists):
        ask(lighterd, "tasks.exec", **exec_)
    runtime.work()

    def listed() -> bool:
        found = ask(lighterd, "tasks.pids", id="c")["processes"]
        return any(process["exec_id"] == "x" for process in found)

    await_that(listed, 20, "the exec is listed")
    ask(lighterd, "tasks.kill", id="c", exec_id="x", signal=9)
    assert ask(lighterd, "tasks.wait", id="c", exec_id="x")["exit_status"] == 137
    ask(lighterd, "tasks.delete", id="c", exec_id="x")
    nothing_is_left(lighterd)


def test_a_bind_from_a_file_system_that_does_not_answer_holds_its_caller_alone(
    lighterd: Lighterd, busybox: str
) -> None:
    """F60: a disk that stands still."""
    bind = {"type": "bind", "destination": "/x", "options": ["rbind"]}
    with StuckFs(lighterd.base / "dead") as dead:
        mount = {**bind, "source": str(dead.path / "data")}
        with nobody_else_waits(lighterd, busybox):
            body = {"id": "c", "image": busybox, "mounts": [mount]}
            message = refused(lighterd, errors.DeadlineExceeded, "containers.create", **body)
            assert message.startswith(f"use {mount['source']} to mount it at /x: ")
        assert dead.waiting
    assert "c" not in [row["id"] for row in ask(lighterd, "containers.list")["containers"]]


def test_an_image_that_is_mounted_below_a_file_system_that_hangs(
    lighterd: Lighterd, busybox: str
) -> None:
    """F60: neither a start nor an unmount waits for it."""
    target = str(lighterd.base / "dead/image")
    os.makedirs(target)
    options = ("--snapshotter", "native")
    lighterd.ctl("images", "mount", *options, busybox, target, check=True)
    lighterd.kill9()
    with StuckFs(lighterd.base / "dead") as dead:
        lighterd.start()
        await_that(lambda: dead.waiting, 20, "the start looks for it")
        with nobody_else_waits(lighterd, busybox):
            message = refused(lighterd, errors.DeadlineExceeded, "images.unmount", target=target)
        assert message.startswith(f"look at what is mounted on {target}: ")
    lighterd.ctl("images", "unmount", target, check=True)


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_f44_pause_and_resume_hang(lighterd: Lighterd, busybox: str, verb: str) -> None:
    runtime = Hanging(lighterd.base, verb)
    lives.begin(lighterd, busybox, "c", "sleep", "1000", runtime=str(runtime.program))
    if verb == "resume":
        ask(lighterd, "tasks.pause", id="c")
    before = lives.task(lighterd, "c")["status"]
    runtime.hang()
    with nobody_else_waits(lighterd, busybox):
        message = refused(lighterd, errors.DeadlineExceeded, f"tasks.{verb}", id="c")
    assert f"{verb}: no answer within" in message
    assert not runtime.running()
    assert lives.task(lighterd, "c")["status"] == before
    runtime.work()
    ask(lighterd, f"tasks.{verb}", id="c")
    assert lives.task(lighterd, "c")["status"] != before
    nothing_is_left(lighterd)


@pytest.mark.parametrize("shim_dies", [False, True], ids=["shim", "manager"])
def test_f44_delete_hangs(lighterd: Lighterd, busybox: str, shim_dies: bool) -> None:
    """The exit is told at once; what the runtime does not delete is removed without it."""
    runtime = Hanging(lighterd.base, "delete")
    lives.begin(lighterd, busybox, "c", "sleep", "1000", runtime=str(runtime.program))
    lives.leave_delete_to_runtime(lighterd, "c")
    runtime.hang()
    began = time.monotonic()
    with nobody_else_waits(lighterd, busybox):
        if shim_dies:
            os.kill(shim_of(lighterd, "c"), signal.SIGKILL)
        else:
            ask(lighterd, "tasks.kill", id="c", exec_id="", signal=9, all=False)
        assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 137
        assert shim_dies or time.monotonic() - began < RUNTIME_S
        ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
        assert time.monotonic() - began < LATEST_S
    assert not runtime.running()
    ask(lighterd, "tasks.create", id="c", **NO_STDIO)  # its state does not stand in the way
    runtime.work()
    nothing_is_left(lighterd)


# The cgroups that a runtime makes before it writes its state, with a process in one.
MAKE_CGROUPS = """\
for top in $(ls -d /sys/fs/cgroup/*/lighter /sys/fs/cgroup/lighter 2>/dev/null); do
  [ -e $top/cgroup.procs ] && mkdir -p $top/{path}/deeper
done
setsid sh -c 'echo $$ >>{pids}; for p in /sys/fs/cgroup/*/lighter/{path}/cgroup.procs \
  /sys/fs/cgroup/lighter/{path}/cgroup.procs; do echo $$ >$p; done 2>/dev/null; exec sleep 1000' &
exec sleep 1000"""


@pytest.mark.parametrize("shim_dies", [False, True], ids=["shim", "manager"])
def test_f44_a_create_that_hung_before_it_wrote_state_leaves_no_cgroup(
    lighterd: Lighterd, busybox: str, shim_dies: bool
) -> None:
    path = cgroup_path(lighterd.instance, "default", "c").removeprefix("/lighter/")
    act = MAKE_CGROUPS.format(path=path, pids=lighterd.base / "pids")
    runtime = Hanging(lighterd.base, "create", act)
    runtime.hang()
    lives.begin(lighterd, busybox, "first", "sleep", "1000")  # so that the places above are there
    lives.define(lighterd, busybox, "c", "true", runtime=str(runtime.program))
    with lighterd.client() as client:
        stream = client.stream("tasks", "create", timeout_s=60, id="c", **NO_STDIO)
        await_that(lambda: len(runtime.running()) == 2, 10, "the runtime hangs")
        await_that(lambda: cgroups_of(lighterd, "c"), 10, "its cgroups are there")
        if shim_dies:
            (shim,) = set(lighterd.shims()) - {shim_of(lighterd, "first")}
            os.kill(shim, signal.SIGKILL)
        with pytest.raises(errors.LighterError):
            list(stream)
    assert not runtime.running()
    assert not cgroups_of(lighterd, "c")
    ask(lighterd, "containers.delete", id="first", force=True)
    nothing_is_left(lighterd)


@pytest.fixture
def stuck(lighterd: Lighterd) -> Iterator[StuckFs]:
    """Freed before the instance is closed."""
    with StuckFs(lighterd.base / "stuck") as stuck:
        yield stuck


def test_f44_a_runtime_in_uninterruptible_sleep(
    lighterd: Lighterd, busybox: str, stuck: StuckFs
) -> None:
    runtime = Hanging(lighterd.base, "create", f"exec cat {stuck.path}/x")
    lives.define(lighterd, busybox, "c", "true", runtime=str(runtime.program))
    runtime.hang()
    with nobody_else_waits(lighterd, busybox):
        message = refused(lighterd, errors.DeadlineExceeded, "tasks.create", id="c", **NO_STDIO)
    assert f"no answer within {RUNTIME_S} s, and SIGKILL does not end it" in message
    (pid,) = runtime.running()
    assert lives.process_state(pid) == "D"
    runtime.work()
    await_that(lambda: not lighterd.shims(), 10, "the shim has given up on it")
    ask(lighterd, "tasks.create", id="c", **NO_STDIO)
    stuck.free()
    await_that(lambda: not runtime.running(), 10, "it has ended")
    nothing_is_left(lighterd)


def begin_stuck(lighterd: Lighterd, busybox: str, stuck: StuckFs) -> int:
    """A container whose init waits for a file that never comes."""
    mount = {
        "type": "bind",
        "source": str(stuck.path),
        "destination": "/stuck",
        "options": ["rbind"],
    }
    pid = lives.begin(lighterd, busybox, "c", "cat", "/stuck/x", mounts=[mount])
    await_that(lambda: stuck.waiting, 10, "it waits")
    return pid


def test_f44_a_container_in_uninterruptible_sleep(
    lighterd: Lighterd, busybox: str, stuck: StuckFs
) -> None:
    pid = begin_stuck(lighterd, busybox, stuck)
    with nobody_else_waits(lighterd, busybox):
        ask(lighterd, "tasks.kill", id="c", exec_id="", signal=9, all=False)
        await_that(lambda: lives.process_state(pid) == "D", 10, "the kernel waits")
        wanted = f"process {pid} (cat) does not end: it is in uninterruptible sleep"
        await_that(lambda: wanted in lives.task(lighterd, "c")["reason"], 10, "it is shown")
        assert wanted in lighterd.ctl("ps").stdout.decode()
        began = time.monotonic()
        message = refused(
            lighterd, errors.FailedPrecondition, "tasks.delete", id="c", exec_id="", force=True
        )
        assert wanted in message and time.monotonic() - began < LATEST_S
    assert len(lighterd.shims()) == 1, "its shim still waits for it"
    stuck.free()
    ended = ask(lighterd, "tasks.wait", id="c", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "")
    nothing_is_left(lighterd)


def test_f44_a_lost_shims_container_in_uninterruptible_sleep(
    lighterd: Lighterd, busybox: str, stuck: StuckFs
) -> None:
    """It is kept, shown with the reason, over a restart too, and settled when it can be."""
    pid = begin_stuck(lighterd, busybox, stuck)
    os.kill(shim_of(lighterd, "c"), signal.SIGKILL)

    def is_shown() -> bool:
        row = lives.task(lighterd, "c")
        return row["status"] == "unknown" and f"process {pid} (cat)" in row["reason"]

    with nobody_else_waits(lighterd, busybox):
        await_that(is_shown, 20, "it is shown")
        for call in ("tasks.delete", "containers.delete"):
            which = {"exec_id": ""} if call == "tasks.delete" else {}
            message = refused(lighterd, errors.LighterError, call, id="c", force=True, **which)
            assert "uninterruptible sleep" in message
    lighterd.kill9()
    lighterd.start()
    await_that(is_shown, 20, "the next manager shows it too")
    stuck.free()
    row = lives.await_task(lighterd, "c", "stopped")
    assert (row["exit_status"], row["cause"]) == (137, "lost-shim")
    nothing_is_left(lighterd)


def freeze(directory: Path, frozen: bool) -> None:
    if cgroups.IS_V2:
        (directory / "cgroup.freeze").write_text(str(int(frozen)))
    else:
        (directory / "freezer.state").write_text("FROZEN" if frozen else "THAWED")


def test_f44_a_container_that_somebody_froze_can_be_killed(
    lighterd: Lighterd, busybox: str
) -> None:
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000")
    group = cgroups.of_process(pid, "freezer")
    freeze(group, True)
    try:
        await_that(lambda: cgroups.is_frozen(pid), 10, "it is frozen")
        ask(lighterd, "tasks.kill", id="c", exec_id="", signal=9, all=False)
        assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 137
    finally:
        # Where nobody has thawed it, nothing else would: it would outlast the test's instance.
        with contextlib.suppress(OSError):
            freeze(group, False)
    nothing_is_left(lighterd)


def test_f42_f44_what_somebody_froze_before_its_start_can_be_deleted(
    lighterd: Lighterd, busybox: str
) -> None:
    lives.define(lighterd, busybox, "c", "sleep", "1000")
    pid = ask(lighterd, "tasks.create", id="c", **NO_STDIO)["pid"]
    group = cgroups.of_process(pid, "freezer")
    freeze(group, True)
    try:
        await_that(lambda: cgroups.is_frozen(pid), 10, "it is frozen")
        ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    finally:
        with contextlib.suppress(OSError):
            freeze(group, False)
    nothing_is_left(lighterd)


def test_f44_a_container_below_a_frozen_cgroup_is_told(lighterd: Lighterd, busybox: str) -> None:
    """On v1 nothing below acts on a signal; on v2 SIGKILL ends what is frozen (cgroup-v2.rst)."""
    pid = lives.begin(lighterd, busybox, "c", "sleep", "1000")
    above = cgroups.of_process(pid, "freezer").parent
    path = cgroup_path(lighterd.instance, "default", "c").rpartition("/")[0]
    freeze(above, True)
    try:
        await_that(lambda: cgroups.is_frozen(pid), 10, "it is frozen")
        if cgroups.IS_V2:
            ask(lighterd, "tasks.kill", id="c", exec_id="", signal=9, all=False)
        else:
            message = refused(
                lighterd, errors.FailedPrecondition, "tasks.delete", id="c", exec_id="", force=True
            )
            assert f"cgroup {path} is frozen" in message
            assert path in lives.task(lighterd, "c")["reason"]
            assert b"is frozen" in lighterd.ctl("ps").stdout
    finally:
        freeze(above, False)
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 137
    nothing_is_left(lighterd)
