"""What the next manager makes of what one leaves that was killed at a step of a life.

Each test begins with the row, the files and the processes that there are at that step.
"""

import asyncio
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.events.log import EventLog
from lighter.daemon.procfs import read_boot_id
from lighter.daemon.tasks import criu
from lighter.daemon.tasks.cgrouplock import CgroupLock
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.execs import ExecService
from lighter.daemon.tasks.recovery import bound_sockets, remove_dead_sockets
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.shims import Peer
from lighter.daemon.tasks.types import Exit
from lighter.proto import codec, events, states
from lighter.proto.errors import FailedPrecondition, NotFound, Unavailable
from tests.lives import process_state
from tests.unit.daemon.test_recovery import (
    ME,
    Followers,
    Start,
    comes_true,
    lighter_shim,
    start_of,
)

pytestmark = pytest.mark.root

KEY = ("default", "c")
PID = 4711  # init's, by its shim's word


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = Start(tmp_path)
    yield made
    made.db.close()


def recorded(start: Start, state: str, **row: Any) -> Entry:
    """The task's row as the manager before has committed it."""
    entry = Entry(*KEY, ME, state, "", read_boot_id(), 1, **row)
    with start.db.fast_transaction() as tx:
        start.store.save(tx, entry)
    return entry


@contextmanager
def shim(start: Start) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has claimed the task, in the place of its shim."""
    bundle = start.bundle_of(*KEY)
    bundle.write(b"{}", ME, "")
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            record = {"incarnation": ME, "pid": process.pid, "start": start_of(process.pid)}
            Path(bundle.claim(ME)).write_text(json.dumps({**record, "boot_id": read_boot_id()}))
            os.rename(bundle.claim(ME), bundle.record)
            yield process
        finally:
            process.kill()


def told(start: Start, sequence: int, topic: str, **body: Any) -> None:
    """The task's shim tells an event, and is heard."""
    event = codec.Event(1, sequence, topic, sequence, {"container_id": "c", **body})
    assert start.supervisor.on_event(start.router.peers[ME], event)


def topics(start: Start) -> list[str]:
    return [row[0] for row in start.db.rows("SELECT topic FROM events ORDER BY sequence")]


def exec_service(start: Start) -> ExecService:
    return ExecService(
        db=start.db,
        store=start.store,
        log=EventLog(start.db),
        supervisor=start.supervisor,
        bundle_of=start.bundle_of,
        cgroup_lock=CgroupLock(own="/dev/null"),
    )


async def nothing(_entry: Entry) -> None:
    """Of its networks."""


def task_service(start: Start) -> TaskService:
    return TaskService(
        db=start.db,
        store=start.store,
        log=EventLog(start.db),
        supervisor=start.supervisor,
        execs=exec_service(start),
        bundle_of=start.bundle_of,
        network_released=nothing,
        network_ready=nothing,
    )


# --- create


def test_f02_a_bundle_that_nobody_has_claimed_goes_with_its_row(start: Start) -> None:
    bundle = start.bundle_of(*KEY)
    bundle.write(b"{}", ME, "")
    recorded(start, states.CREATING)

    async def work() -> None:
        entry = start.run()
        assert not entry.is_task, "it is shown"
        await comes_true(lambda: KEY not in start.supervisor.entries)
        start.supervisor.close()

    asyncio.run(work())
    assert not bundle.exists(), "a task of this name could not be made"
    assert (start.store.load(), topics(start)) == ([], [])


def test_f03_what_a_bundle_without_a_row_holds_is_freed(start: Start) -> None:
    bundle = start.record()
    with start.db.fast_transaction() as tx:
        tx.execute("DELETE FROM tasks")

    async def work() -> None:
        start.recovery.run()
        start.supervisor.follow(Followers(), start.lost)
        await comes_true(lambda: not bundle.exists())
        start.supervisor.close()

    asyncio.run(work())
    assert start.freer.freed == ["c"]


def test_f04_a_shim_that_no_row_tells_of_is_left_its_bundle(start: Start) -> None:
    """What it is, it says in its own time."""
    with shim(start) as process:

        async def work() -> None:
            start.recovery.run()
            start.supervisor.follow(Followers(), start.lost)
            await asyncio.sleep(0.1)  # in which a removal would be through
            assert (start.freer.freed, process.poll()) == ([], None)
            assert start.bundle_of(*KEY).exists()
            start.supervisor.close()

        asyncio.run(work())


def test_f04_the_claim_is_withdrawn_before_the_task_is_judged(start: Start) -> None:
    """An order of the dead manager's may be in its spawner still."""
    bundle = start.bundle_of(*KEY)
    bundle.write(b"{}", ME, "")
    recorded(start, states.CREATING)

    async def work() -> None:
        start.recovery.run()
        left = sorted(os.listdir(bundle.dir))
        assert left == ["config.json", "rootfs"], "a shim could claim it"
        await asyncio.sleep(0)  # what it does for it has begun
        start.supervisor.close()

    asyncio.run(work())


def test_f04_and_f05_a_shim_that_ends_before_its_hello_keeps_no_create_away(start: Start) -> None:
    recorded(start, states.CREATING)  # the fork was not answered: nobody has noted its process
    with shim(start) as process:

        async def work() -> None:
            entry = start.run()
            assert (entry.shim_pid, entry.state) == (process.pid, states.CREATING)
            process.kill()
            await comes_true(lambda: KEY not in start.supervisor.entries)
            start.supervisor.close()

        asyncio.run(work())
    assert start.freer.freed == ["c"]
    assert not start.bundle_of(*KEY).exists()
    assert start.store.load() == []


def test_f06_a_create_that_is_under_way_is_its_shims(start: Start) -> None:
    recorded(start, states.CREATING)
    with shim(start) as process:

        async def work() -> None:
            entry = start.run()
            await asyncio.sleep(0.1)  # in which a settling would be through
            assert (start.freer.freed, process.poll()) == ([], None)
            start.said_hello(pid=process.pid, start=start_of(process.pid), state=states.CREATING)
            told(start, 1, events.CREATE, pid=PID)
            assert start.supervisor.entries[KEY] is entry
            assert entry.view().status == states.CREATED
            start.supervisor.close()

        asyncio.run(work())
    assert [row.state for row in start.store.load()] == [states.CREATED]


def test_f06_what_the_manager_before_was_undoing_is_undone(start: Start) -> None:
    """Its create was given up, by its client or for a time limit, and its shim lives."""
    with shim(start) as process:
        its = {"shim_pid": process.pid, "shim_start": start_of(process.pid), "last_sequence": 1}
        recorded(start, states.CREATED, options={"abandoned": True}, **its)

        async def work() -> None:
            start.run()
            await comes_true(lambda: KEY not in start.supervisor.entries)
            assert process.poll() is not None
            start.supervisor.close()

        asyncio.run(work())
    assert start.freer.freed == ["c"]
    assert start.store.load() == []


def test_f07_what_was_created_meanwhile_has_the_pid_that_its_shim_tells(start: Start) -> None:
    recorded(start, states.CREATING)
    with shim(start) as process:

        async def work() -> None:
            entry = start.run()
            said = {"pid": process.pid, "start": start_of(process.pid), "init_pid": PID}
            start.said_hello(state=states.CREATED, **said)
            told(start, 1, events.CREATE, pid=PID)
            assert (entry.view().status, entry.view().pid) == (states.CREATED, PID)
            start.supervisor.close()

        asyncio.run(work())
    (row,) = start.store.load()
    assert (row.state, row.pid, row.incarnation) == (states.CREATED, PID, ME)
    assert topics(start) == [events.CREATE]


# --- exec


def test_f11_an_exec_that_was_recorded_only_can_be_made_again(start: Start) -> None:
    row = recorded(start, states.RUNNING, last_sequence=2)
    with start.db.fast_transaction() as tx:
        start.store.save_exec(tx, row, Exec("x", states.CREATING, False, 1))
    with shim(start) as process:

        async def work() -> None:
            start.run()
            start.said_hello(pid=process.pid, start=start_of(process.pid))
            # As far as the shim, which has no connection here.
            with pytest.raises(Unavailable, match="exec task"):
                await exec_service(start).exec(*KEY, "x", {}, {})
            start.supervisor.close()

        asyncio.run(work())


def test_f12_a_terminals_socket_that_nobody_listens_on_goes(start: Start) -> None:
    """An exec's that was under way when its manager and its shim were killed."""
    path = f"{start.state.short_sockets}/"
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as ended:
        bound.bind(path + "bound")
        bound.listen(1)
        ended.bind(path + "ended")
        ended.close()

        async def work() -> None:
            start.recovery.run()

        asyncio.run(work())
        assert os.listdir(start.state.short_sockets) == ["bound"], "a shim waits for its terminal"


def test_f12_shims_make_and_remove_sockets_while_dead_ones_are_looked_for(start: Start) -> None:
    directory = start.state.short_sockets
    with (
        socket.socket(socket.AF_UNIX) as skipped,
        socket.socket(socket.AF_UNIX) as closed,
        socket.socket(socket.AF_UNIX) as late,
    ):
        skipped.bind(f"{directory}/skipped")
        skipped.listen(1)
        closed.bind(f"{directory}/closed")
        closed.close()

        def look() -> set[bytes]:
            found = bound_sockets() - {f"{directory}/skipped".encode()}
            os.unlink(f"{directory}/closed")
            late.bind(f"{directory}/late")
            return found

        remove_dead_sockets(directory, look)
        assert sorted(os.listdir(directory)) == ["late", "skipped"]


def test_dead_sockets_that_cannot_be_looked_for_keep_no_manager_from_its_start(
    start: Start,
) -> None:
    os.rmdir(start.state.short_sockets)
    assert start.recovery.run() == 0


def test_f13_an_exec_that_no_row_tells_of_is_adopted_with_its_exit(start: Start) -> None:
    recorded(start, states.RUNNING, last_sequence=2)
    with shim(start) as process:

        async def work() -> None:
            entry = start.run()
            start.said_hello(pid=process.pid, start=start_of(process.pid))
            told(start, 3, events.EXEC_STARTED, exec_id="x", pid=PID)
            assert entry.execs["x"].state == states.RUNNING
            told(start, 4, events.EXIT, exec_id="x", exit_status=7, exited_at=9, cause="")
            assert entry.execs["x"].ended.is_set()
            assert entry.state == states.RUNNING
            start.supervisor.close()

        asyncio.run(work())
    (row,) = start.store.load()
    assert row.execs["x"].exit == Exit(7, 9)


def test_f14_an_exec_that_runs_is_there_for_the_next_manager(start: Start) -> None:
    recorded(start, states.RUNNING, last_sequence=2)
    with shim(start) as process:

        async def work() -> None:
            start.run()
            start.said_hello(pid=process.pid, start=start_of(process.pid))
            told(start, 3, events.EXEC_STARTED, exec_id="x", pid=PID)
            start.supervisor.close()

        asyncio.run(work())
    (row,) = start.store.load()
    found = row.execs["x"]
    assert (found.state, found.pid, found.ended.is_set()) == (states.RUNNING, PID, False)


def test_f14_an_exec_that_has_ended_is_waited_for_by_nobody(start: Start) -> None:
    row = recorded(start, states.RUNNING, last_sequence=4)
    with start.db.fast_transaction() as tx:
        start.store.save_exec(tx, row, Exec("x", states.STOPPED, False, 1, exit=Exit(7, 9)))
    with shim(start):

        async def work() -> None:
            start.run()
            async with asyncio.timeout(30):
                assert await task_service(start).wait(*KEY, "x") == Exit(7, 9)
            start.supervisor.close()

        asyncio.run(work())


# --- end


class Ended(Peer):
    """A shim whose init a signal has ended that it was sent before."""

    def __init__(self, start: Start) -> None:
        super().__init__(start.router, ME)
        self.asked: list[str] = []
        self.start = start

    async def call(
        self, method: str, body: dict[str, Any] | None = None, timeout_s: float = 0
    ) -> Any:
        self.asked.append(method)
        loop = asyncio.get_running_loop()
        exit_ = {"exit_status": 137, "exited_at": 9, "cause": ""}
        loop.call_soon(lambda: told(self.start, 3, events.EXIT, exec_id="", **exit_))
        loop.call_soon(lambda: told(self.start, 4, events.CLOSED))
        raise FailedPrecondition(f"{method} c: it is stopped")


def test_f17_a_second_delete_by_force_ends_what_the_first_began(start: Start) -> None:
    """The signal was sent by a manager that was killed; this one has not heard of the end yet."""
    recorded(start, states.RUNNING, last_sequence=2)
    with shim(start) as process:

        async def work() -> None:
            entry = start.run()
            start.said_hello(pid=process.pid, start=start_of(process.pid))
            entry.peer = start.router.peers[ME] = peer = Ended(start)
            peer.version = 1
            assert await task_service(start).delete(*KEY, force=True) == Exit(137, 9)
            assert peer.asked == ["kill"]
            start.supervisor.close()

        asyncio.run(work())
    assert start.store.load() == []
    assert topics(start) == [events.EXIT, events.DELETE]


def test_f16_who_waits_for_what_had_ended_has_it_at_once(start: Start) -> None:
    recorded(start, states.STOPPED, exit=Exit(42, 9), last_sequence=3)
    with shim(start):  # which cleans up, and has told all but that

        async def work() -> None:
            start.run()
            async with asyncio.timeout(30):
                assert await task_service(start).wait(*KEY, "") == Exit(42, 9)
            start.supervisor.close()

        asyncio.run(work())


def test_f18_the_exit_record_of_an_earlier_start_says_nothing_of_this_one(start: Start) -> None:
    recorded(start, states.RUNNING, last_sequence=2, shim_pid=1, shim_start=1)
    bundle = start.bundle_of(*KEY)
    bundle.write(b"{}", ME, "")
    said = {"incarnation": "f" * 16, "exit_status": 42, "exited_at": 9, "cause": ""}
    Path(bundle.exit_record).write_text(json.dumps(said))

    async def work() -> None:
        entry = start.run()
        await comes_true(lambda: entry.closed)
        assert entry.exit is not None
        assert (entry.exit.exit_status, entry.exit.cause) == (255, "unknown")
        start.supervisor.close()

    asyncio.run(work())


def test_f18_an_exit_that_was_told_is_not_told_by_its_record(start: Start) -> None:
    """The shim has died since, with the runtime's state removed and its root mounted."""
    exit_ = Exit(42, 9)
    recorded(start, states.STOPPED, exit=exit_, last_sequence=3)
    bundle = start.bundle_of(*KEY)
    with shim(start):
        pass
    said = {"incarnation": ME, "exit_status": 42, "exited_at": 9, "cause": ""}
    Path(bundle.exit_record).write_text(json.dumps(said))

    async def work() -> None:
        entry = start.run()
        await comes_true(lambda: entry.closed)
        assert await task_service(start).delete(*KEY) == exit_
        start.supervisor.close()

    asyncio.run(work())
    assert start.freer.freed == ["c"]
    assert topics(start) == [events.DELETE]
    assert not os.path.exists(bundle.exit_record)


# --- delete


class Told(Followers):
    """Of which tasks that are over."""

    def __init__(self) -> None:
        self.over: list[str] = []

    def on_closed(self, entry: Entry) -> None:
        self.over.append(entry.id)


OVER = {"exit": Exit(3, 1), "closed": True, "last_sequence": 4}


def test_f20_the_row_of_a_create_whose_bundle_is_gone_goes_at_the_start(start: Start) -> None:
    recorded(start, states.CREATING, closed=True)

    async def work() -> None:
        start.recovery.run()
        assert KEY not in start.supervisor.entries
        await asyncio.sleep(0)  # what it does besides has begun
        start.supervisor.close()

    asyncio.run(work())
    assert start.store.load() == []


def test_f20_of_one_that_was_over_its_removal_goes_on(start: Start) -> None:
    """`--rm` among them: nobody asks again for what the manager was to do by itself."""
    recorded(start, states.STOPPED, **OVER)
    followers = Told()

    async def work() -> None:
        start.recovery.run()
        start.supervisor.follow(followers, start.lost)
        start.supervisor.close()

    asyncio.run(work())
    assert followers.over == ["c"]


def test_f21_deleting_again_is_success_and_then_not_found(start: Start) -> None:
    recorded(start, states.STOPPED, **OVER)

    async def work() -> None:
        start.run()
        service = task_service(start)
        async with asyncio.timeout(30):
            assert await service.delete(*KEY) == Exit(3, 1)
            with pytest.raises(NotFound):
                await service.delete(*KEY)
        start.supervisor.close()

    asyncio.run(work())
    assert start.store.load() == []
    assert topics(start) == [events.DELETE]


def test_f21_a_deleted_task_does_not_come_back_with_its_shim(start: Start) -> None:
    """Its manager was killed when the row had gone, and its shim waits to hear of that."""
    row = recorded(start, states.STOPPED, **OVER)
    with start.db.fast_transaction() as tx:
        start.store.delete(tx, row)
    with lighter_shim(start.root.instance) as pid:

        async def work() -> None:
            start.recovery.run()
            start.said_hello(pid=pid, start=start_of(pid), state=states.STOPPED)
            assert KEY not in start.supervisor.entries
            await comes_true(lambda: process_state(pid) in ("", "Z"))
            start.supervisor.close()

        asyncio.run(work())
    assert start.store.load() == []


def test_f21_the_shim_of_a_deleted_task_is_ended_and_its_note_goes_with_it(start: Start) -> None:
    """One that hangs would stay for ever, seen by nobody."""
    with shim(start) as process:
        its = {"shim_pid": process.pid, "shim_start": start_of(process.pid)}
        recorded(start, states.STOPPED, **its, **OVER)

        async def work() -> None:
            start.run()
            await task_service(start).delete(*KEY)
            await comes_true(lambda: process.poll() is not None)
            await comes_true(lambda: not start.store.tombstones())
            start.supervisor.close()

        asyncio.run(work())
    assert start.store.load() == []


# --- a look at what callers name


def test_who_looks_where_a_checkpoint_is_to_go_holds_nobody_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be on a network file system that no longer answers."""
    answers = threading.Event()
    monkeypatch.setattr(criu, "check_new", lambda _directory: answers.wait(20))

    async def work() -> None:
        asked = asyncio.ensure_future(task_service(start).checkpoint(*KEY, "/mnt/gone"))
        await asyncio.sleep(0.01)
        assert not asked.done()
        answers.set()
        with pytest.raises(NotFound):
            await asked

    asyncio.run(work())
