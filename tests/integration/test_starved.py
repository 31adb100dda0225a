"""F59: no process more for the spawner, its shims and what they run; no thread for the manager, or
no memory or address space. F60: next to no processor time, and a worker that stands still."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.proto import errors
from tests import cgroups, images, lives
from tests.harness import Lighterd, await_that, importing
from tests.lives import NO_STDIO, NoAnswer, ask
from tests.processes import spawners

pytestmark = pytest.mark.shared_lighterd

ROOM_BYTES = 16 << 20
TOO_MANY_WORDS = 900_000  # some 60 MB as objects, and not a third of the largest message
SLOW_S = 90.0  # for what takes some seconds where nothing else runs
GIVEN_UP_S = 15.0
TYPED = (errors.ResourceExhausted, errors.Unavailable, errors.FailedPrecondition)


@contextlib.contextmanager
def limited(cgroup: Path, count: int) -> Iterator[None]:
    """While the block runs, so many tasks can be in the cgroup."""
    limit = cgroup / "pids.max"
    limit.write_text(str(count))
    try:
        yield
    finally:
        limit.write_text("max")


def at_most(cgroup: Path, more: int) -> contextlib.AbstractContextManager[None]:
    """While the block runs, `more` tasks than now can be in the cgroup."""
    return limited(cgroup, int((cgroup / "pids.current").read_text()) + more)


def test_f59_no_process_more_for_shims(lighterd: Lighterd, busybox: str) -> None:
    """With room for 0, 1, 2, … more: the fork fails in shim, runtime and runtime's child."""
    old = lives.begin(lighterd, busybox, "old", "sleep", "1000")
    lives.define(lighterd, busybox, "new", "sleep", "1000")
    (spawner,) = spawners(lighterd.instance)
    cgroup, shims = cgroups.of_process(spawner, "pids"), lighterd.shims()
    for more in (0, 1, 3, 7):
        with at_most(cgroup, more), contextlib.suppress(*TYPED):
            ask(lighterd, "tasks.create", id="new", **NO_STDIO)
            assert more > 1, "there was room for what a runtime needs"
            ask(lighterd, "tasks.delete", id="new", exec_id="", force=True)
        assert lives.task(lighterd, "new")["status"] is None
        await_that(lambda: lighterd.shims() == shims, 20, "the shim that was to be is gone")
        assert lives.process_state(old) == "S"
        assert spawners(lighterd.instance) == [spawner], "it goes on"
    ask(lighterd, "tasks.create", id="new", **NO_STDIO)
    ask(lighterd, "tasks.start", id="new")
    for name in ("new", "old"):
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)
    assert not (wrong := lives.check_history(lives.history(lighterd))), wrong


def test_f59_a_fork_that_fails_is_told_and_the_spawner_goes_on(
    lighterd: Lighterd, busybox: str
) -> None:
    for name in ("first", "second"):
        lives.define(lighterd, busybox, name, "sleep", "1000")
    (spawner,) = spawners(lighterd.instance)
    shims = lighterd.shims()
    with limited(cgroups.of_process(spawner, "pids"), 1 + len(shims)):
        with contextlib.suppress(*TYPED):  # by a shim that was ready, after which there is none
            ask(lighterd, "tasks.create", id="first", **NO_STDIO)
        with pytest.raises(errors.Unavailable, match="Resource temporarily unavailable"):
            ask(lighterd, "tasks.create", id="second", **NO_STDIO)
    await_that(lambda: lighterd.shims() == shims, 20, "the shim that was to be is gone")
    assert spawners(lighterd.instance) == [spawner]
    ask(lighterd, "tasks.create", id="second", **NO_STDIO)
    for name in ("first", "second"):
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)


def test_f59_no_thread_more_for_the_manager(lighterd: Lighterd, busybox: str) -> None:
    """It has what it needs: processes are the spawner's, and its threads are there before."""
    old = lives.begin(lighterd, busybox, "old", "sleep", "1000")
    top = cgroups.MOUNT if cgroups.IS_V2 else cgroups.MOUNT / "pids"
    cgroup = top / f"lighter-test-{lighterd.instance}"
    cgroup.mkdir()
    try:
        (cgroup / "cgroup.procs").write_text(str(lighterd.pid))
        with at_most(cgroup, 0):
            ask(lighterd, "containers.create", id="new", image=busybox, args=["sleep", "1000"])
            ask(lighterd, "tasks.create", id="new", **NO_STDIO)
            ask(lighterd, "tasks.start", id="new")
            ask(lighterd, "tasks.exec", id="old", exec_id="x", args=["true"], **NO_STDIO)
            assert ask(lighterd, "tasks.wait", id="old", exec_id="x")["exit_status"] == 0
            assert lives.process_state(old) == "S"
            for name in ("new", "old"):
                ask(lighterd, "containers.delete", id=name, force=True)
            lighterd.import_busybox()
            lighterd.ctl("system", "prune", check=True)
    finally:
        (top / "cgroup.procs").write_text(str(lighterd.pid))
        cgroup.rmdir()


def test_f59_no_memory_more_for_the_manager(lighterd: Lighterd, busybox: str) -> None:
    """A request for which its cgroup has no room costs the manager, or is refused by one that goes
    on; and it costs nobody else anything."""
    old = lives.begin(lighterd, busybox, "old", "sleep", "1000")
    shims = lighterd.shims()
    group = f"lighter-starved-{lighterd.instance}"
    with cgroups.without_memory(lighterd.pid, group, ROOM_BYTES) as cgroup:
        run_exec(lighterd, "before")
        with pytest.raises((NoAnswer, *TYPED)) as ended:
            lives.define(lighterd, busybox, "new", *["word"] * TOO_MANY_WORDS)
        if isinstance(ended.value, NoAnswer):
            assert (ended.value.who, ended.value.how) == ("manager", "dead")
            assert cgroups.oom_kills(cgroup) == 1
            assert lighterd.process is not None
            assert lighterd.process.wait() == -signal.SIGKILL
            lighterd._await_spawner()
        else:
            assert cgroups.oom_kills(cgroup) == 0
            run_exec(lighterd, "meanwhile")
            lighterd.kill9()
        assert (lighterd.shims(), lives.process_state(old)) == (shims, "S")
    lighterd.start()
    run_exec(lighterd, "after")
    # What was not acknowledged may be there or not, and here nothing of it could be kept.
    listed = ask(lighterd, "containers.list", cursor="", limit=9)["containers"]
    assert [row["id"] for row in listed] == ["old"]
    lives.define(lighterd, busybox, "new", "sleep", "1000")
    for name in ("new", "old"):
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)
    assert not (wrong := lives.check_history(lives.history(lighterd))), wrong


def test_f59_no_address_space_more_for_the_manager(lighterd: Lighterd, busybox: str) -> None:
    """A request for which there is none is answered, and nothing of it is left."""
    old = lives.begin(lighterd, busybox, "old", "sleep", "1000")
    with lighterd.client() as client:
        assert client.call("version", "get")
        limit = resource.prlimit(lighterd.pid, resource.RLIMIT_AS)
        pages = int(Path(f"/proc/{lighterd.pid}/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + ROOM_BYTES
        for words in (["word"] * TOO_MANY_WORDS, ["w" * (14 << 20)]):
            resource.prlimit(lighterd.pid, resource.RLIMIT_AS, (room, limit[1]))
            try:
                with pytest.raises(errors.ResourceExhausted, match="there is no memory for it"):
                    create = {"id": "new", "image": busybox, "args": words}
                    client.call("containers", "create", timeout_s=60, **create)
            finally:
                resource.prlimit(lighterd.pid, resource.RLIMIT_AS, limit)
    run_exec(lighterd, "after")
    assert lives.process_state(old) == "S"
    lives.define(lighterd, busybox, "new", "sleep", "1000")
    for name in ("new", "old"):
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)


def run_exec(lighterd: Lighterd, exec_id: str) -> None:
    which = {"id": "old", "exec_id": exec_id}
    ask(lighterd, "tasks.exec", args=["true"], **which, **NO_STDIO)
    assert ask(lighterd, "tasks.wait", **which)["exit_status"] == 0


def test_f60_next_to_no_processor_time(lighterd: Lighterd, busybox: str) -> None:
    """Manager, spawner and shims share a twentieth of a processor: what is asked is done or refused
    in words, an end is told, and nothing stays of what was not done.
    """
    old = lives.begin(lighterd, busybox, "old", "sleep", "1000")
    lives.define(lighterd, busybox, "new", "sh", "-c", "exit 7")
    (spawner,) = spawners(lighterd.instance)
    family = [lighterd.pid, *lighterd.shims(), spawner]
    group = f"lighter-slow-{lighterd.instance}"
    with cgroups.throttled(family, group, 0.05) as throttlings, lighterd.client() as client:
        slow = {"id": "old", "exec_id": "slow"}
        client.call("tasks", "exec", timeout_s=SLOW_S, args=["true"], **slow, **NO_STDIO)
        assert client.call("tasks", "wait", timeout_s=SLOW_S, **slow)["exit_status"] == 0
        try:
            client.call("tasks", "create", timeout_s=SLOW_S, id="new", **NO_STDIO)
            client.call("tasks", "start", timeout_s=SLOW_S, id="new")
            ended = client.call("tasks", "wait", timeout_s=SLOW_S, id="new", exec_id="")
            assert ended["exit_status"] == 7
        except (errors.DeadlineExceeded, *TYPED):
            pass
        assert throttlings() > 0
        assert lives.process_state(old) == "S"
    for name in ("new", "old"):
        ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)
    lives.begin(lighterd, busybox, "next", "sh", "-c", "exit 3")
    assert ask(lighterd, "tasks.wait", id="next", exec_id="")["exit_status"] == 3
    assert not (wrong := lives.check_history(lives.history(lighterd))), wrong


def test_f60_a_worker_that_stands_still_costs_its_caller_alone(
    lighterd: Lighterd, busybox: str
) -> None:
    """It is ended when its caller gives up, with what it has mounted and half written."""
    data = images.busybox_archive(compressed=True).read_bytes()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        with lighterd.client() as client:
            stream = importing(client, read_end, GIVEN_UP_S)
            os.write(write_end, data[: 32 << 10])
            worker = lives.await_worker(lighterd)
            lives.hold_still(worker)
            lives.begin(lighterd, busybox, "other", "sh", "-c", "exit 3")
            assert ask(lighterd, "tasks.wait", id="other", exec_id="")["exit_status"] == 3
            with pytest.raises(errors.DeadlineExceeded):
                list(stream)
        await_that(lambda: worker not in lives.workers(lighterd), 20, "its worker has been ended")
    finally:
        os.close(read_end)
        os.close(write_end)
    assert lighterd.import_busybox() == busybox
    ask(lighterd, "containers.delete", id="other", force=True)
    lives.leftovers(lighterd)
