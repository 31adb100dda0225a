"""Docker's :z and :Z: what they ask for, of what label, and of whom."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lighter.daemon.containers.relabelling import OPTION, SYSTEM, Relabelling, Wish, asked
from lighter.daemon.types import Container
from lighter.proto.errors import InvalidArgument
from lighter.proto.paths import Root, State

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
SHARED_LABEL = "system_u:object_r:container_file_t:s0"


class Worker:
    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    async def run(
        self,
        job: dict[str, Any],
        fds: Sequence[int],
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        self.jobs.append(job)
        return {"entries": 1, "changed": 1}

    @property
    def labels(self) -> list[tuple[str, str]]:
        return [(job["path"], job["label"]) for job in self.jobs]


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def relabelling(worker: Worker) -> Relabelling:
    return Relabelling(worker, Root("/srv/lighter"), State("/run/lighter"))


def bind(source: str, *options: str, kind: str = "bind") -> dict[str, Any]:
    return {"type": kind, "source": source, "destination": "/d", "options": list(options)}


def container(rows: object, label: str = LABEL) -> Container:
    spec = {"linux": {"mountLabel": label} if label else {}}
    options: dict[str, Any] = {OPTION: rows} if rows else {}
    if label:
        options["selinux"] = {"level": "s0:c1,c2"}
    return Container(
        namespace="default",
        id="c",
        image="",
        runtime="runc",
        snapshotter="overlayfs",
        snapshot_key="c",
        spec=json.dumps(spec).encode(),
        labels={},
        options=options,
        created_at=0,
        updated_at=0,
    )


def test_the_words_are_taken_out_of_the_mounts() -> None:
    given = (bind("/a", "rbind", "Z"), bind("/v", "z", "ro"), bind("/c", "rbind"))
    mounts, wishes = asked(given, {"/v": True})
    assert [mount["options"] for mount in mounts] == [["rbind"], ["ro"], ["rbind"]]
    assert wishes == (Wish("/a", False, False), Wish("/v", True, True))
    with pytest.raises(InvalidArgument, match="exclude"):
        asked((bind("/a", "z", "Z"),), {})
    # What is no bind has nothing to relabel; what is no list at all is for the spec's own checks.
    assert asked((bind("tmpfs", "z", kind="tmpfs"),), {})[1] == ()
    assert asked(({"type": "bind", "source": "/a", "options": 7},), {})[1] == ()


def test_a_container_without_a_label_has_nothing_relabelled(
    worker: Worker, relabelling: Relabelling
) -> None:
    assert asyncio.run(relabelling.prepare([Wish("/etc", True, False)], {"/v": True}, "")) == {}
    rows = [{"path": "/a", "shared": True, "volume": False}]
    assert not asyncio.run(relabelling.apply(container(rows, label="")))
    assert not asyncio.run(relabelling.apply(container(None)))
    assert worker.jobs == []


def test_what_is_asked_for_is_checked_at_create_and_done_at_each_start(
    worker: Worker, relabelling: Relabelling
) -> None:
    wishes = [Wish("/a", False, False), Wish("/b", True, False)]
    made = asyncio.run(relabelling.prepare(wishes, {}, LABEL))
    assert worker.labels == [("/a", ""), ("/b", "")]
    for _ in range(2):
        worker.jobs.clear()
        assert asyncio.run(relabelling.apply(container(made[OPTION])))
        assert worker.labels == [("/a", LABEL), ("/b", SHARED_LABEL)]


def test_a_new_volume_is_for_all_containers_unless_it_is_asked_for_alone(
    worker: Worker, relabelling: Relabelling
) -> None:
    volumes = {"/srv/lighter/v": True, "/srv/lighter/used": False, "/srv/lighter/mine": True}
    asyncio.run(relabelling.prepare([Wish("/srv/lighter/mine", False, True)], volumes, LABEL))
    assert worker.labels == [("/srv/lighter/mine", ""), ("/srv/lighter/v", SHARED_LABEL)]


def test_the_managers_own_files_and_the_systems_are_named(
    worker: Worker, relabelling: Relabelling
) -> None:
    asyncio.run(relabelling.prepare([Wish("/a", True, False), Wish("/v", True, True)], {}, LABEL))
    of_host, of_volume = worker.jobs
    assert {*SYSTEM, "/srv/lighter", "/run/lighter"} == set(of_host["system"])
    assert {"/", "/etc", "/usr", "/home", "/root", "/var", "/dev", "/proc", "/sys"} <= set(SYSTEM)
    assert {"/proc", "/sys", "/srv/lighter", "/run/lighter"} <= set(of_host["closed"])
    assert "/srv/lighter" not in of_volume["closed"]
