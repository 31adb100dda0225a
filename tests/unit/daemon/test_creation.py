"""The order of a create: whatever a manager leaves that is killed over it has an owner."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from lighter.daemon.procfs import read_boot_id
from lighter.daemon.spawning.spawner import Child, Spawner
from lighter.daemon.tasks.cgrouplock import CgroupLock
from lighter.daemon.tasks.creation import TaskCreator
from lighter.daemon.tasks.runtimes import Runtimes
from lighter.daemon.types import Container
from lighter.proto import states
from lighter.proto.errors import AlreadyExists, ResourceExhausted, Unavailable
from tests.unit.daemon.test_recovery import Followers, Start, comes_true, start_of

pytestmark = pytest.mark.root


class Forking:
    """In the spawner's place: it forks nothing, and looks at what there is when it would."""

    def __init__(self, look: Callable[[dict[str, Any]], None]) -> None:
        self.look = look
        self.orders: list[dict[str, Any]] = []

    async def fork_shim(self, order: dict[str, Any]) -> Child:
        self.orders.append(order)
        self.look(order)
        raise Unavailable("fork shim: it is not done here")


def creating(start: Start, spawner: Forking, most_tasks: int = 9) -> TaskCreator:
    return TaskCreator(
        root=start.root,
        state=start.state,
        db=start.db,
        store=start.store,
        supervisor=start.supervisor,
        router=start.router,
        spawner=cast(Spawner, spawner),
        bundle_of=start.bundle_of,
        generation=1,
        boot_id=read_boot_id(),
        runtimes=Runtimes({"runc": "/bin/true"}),
        has_room=lambda: True,
        most_tasks=lambda: most_tasks,
        runtime_s=5,
        cgroup_lock=CgroupLock(own="/dev/null"),
    )


async def create(creator: TaskCreator) -> int:
    container = Container("default", "c", "", "runc", "", "", b"{}", {}, {}, 0, 0)
    return await creator.create(container, (), False, {})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = Start(tmp_path)
    yield made
    made.db.close()


def test_f02_no_shim_is_forked_that_no_row_tells_of(start: Start) -> None:
    """The row first, then the bundle with the claim, then the fork; and the same way back."""
    bundle = start.bundle_of("default", "c")

    def look(order: dict[str, Any]) -> None:
        (row,) = start.store.load()
        assert (row.state, row.incarnation) == (states.CREATING, order["incarnation"])
        assert os.path.exists(order["claim"])

    async def work() -> None:
        spawner = Forking(look)
        creator = creating(start, spawner)
        for _ in range(2):  # what was undone can be made
            with pytest.raises(Unavailable, match="fork shim"):
                await create(creator)
            assert not bundle.exists()
            assert start.store.load() == []
        assert len({order["incarnation"] for order in spawner.orders}) == 2
        start.supervisor.follow(Followers(), start.lost)
        start.supervisor.close()

    asyncio.run(work())


def test_f58_a_task_for_whose_shim_there_are_no_descriptors_is_refused(start: Start) -> None:
    async def work() -> None:
        with pytest.raises(ResourceExhausted, match="create task c: 0 tasks have a shim"):
            await create(creating(start, Forking(lambda _order: None), most_tasks=0))
        assert start.store.load() == []
        start.supervisor.follow(Followers(), start.freer)
        start.supervisor.close()

    asyncio.run(work())


def test_f06_that_a_create_is_undone_is_noted_before_its_shim_is_ended(start: Start) -> None:
    """Who is killed while it waits for that has a next manager that goes on with it."""
    with subprocess.Popen(["sleep", "1000"]) as process:

        def claim(order: dict[str, Any]) -> None:
            record = {"pid": process.pid, "start": start_of(process.pid)}
            record |= {"incarnation": order["incarnation"], "boot_id": read_boot_id()}
            Path(order["claim"]).write_text(json.dumps(record))
            os.rename(order["claim"], order["record"])

        async def work() -> None:
            start.supervisor.follow(Followers(), start.lost)
            creation = asyncio.ensure_future(create(creating(start, Forking(claim))))
            await comes_true(lambda: any(row.is_abandoned for row in start.store.load()))
            assert process.poll() is None and not creation.done()
            process.kill()
            with pytest.raises(Unavailable, match="fork shim"):
                await creation
            start.supervisor.close()

        try:
            asyncio.run(work())
        finally:
            process.kill()
    assert start.freer.freed == ["c"]
    assert start.store.load() == []


def test_f05_a_shim_that_nobody_has_heard_of_yet_is_left_its_bundle(start: Start) -> None:
    """Its row was lost; it says hello in its own time."""
    bundle = start.record()
    before = sorted(os.listdir(bundle.dir))
    with start.db.fast_transaction() as tx:
        tx.execute("DELETE FROM tasks")
    spawner = Forking(lambda _order: None)

    async def work() -> None:
        with pytest.raises(AlreadyExists) as refused:
            await create(creating(start, spawner))
        assert os.listdir(os.path.dirname(bundle.dir)) == ["c"], "it was removed as one of ours"
        assert "a shim that has not connected" in refused.value.message

    asyncio.run(work())
    assert spawner.orders == []
    assert sorted(os.listdir(bundle.dir)) == before
    assert start.store.load() == []
