"""The files of a container: looked at, copied out and in, listed by what changed, exported.

All of it is a worker's work, which sees nothing but that container (shim/worker/contained.py): the
manager only says which one. Of a container that lives, frozen or not, the worker enters the mount
namespace; of one that does not it mounts the snapshot and the spec's binds, and while it writes
there no task is made of it, because two overlays on one upper directory destroy each other.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.images.worker import Worker
from lighter.daemon.oci import idmaps
from lighter.daemon.procfs import parent_of
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import Container
from lighter.proto.errors import FailedPrecondition, NotFound, Unavailable

MAX_BINDS = 1000
_READ_ONLY = frozenset(("ro", "rro"))


@dataclass(frozen=True)
class Found:
    """What a path is; `target_mode` is that of what a link leads to, 0 for nothing."""

    mode: int
    size_bytes: int
    mtime_ns: int
    link: bytes
    target_mode: int


class ContainerFiles:
    """Every method takes the namespace and the container's id first. Paths are bytes."""

    def __init__(
        self,
        containers: ContainerService,
        tasks: TaskService,
        snapshots: SnapshotService,
        worker: Worker,
    ) -> None:
        self._containers = containers
        self._tasks = tasks
        self._snapshots = snapshots
        self._worker = worker

    async def look(self, namespace: str, id_: str, path: bytes) -> Found:
        """What `path` is in the container. Raises NotFound."""
        async with self._inside(namespace, id_) as (where, fds):
            job = {"job": "look", "path": path, **where}
            seen = await self._worker.run(job, fds)
        if seen["found"] is None:
            raise NotFound(f"find {shown(path)} in {id_}: there is no such file", missing="path")
        mode, size_bytes, mtime_ns = seen["found"]
        return Found(mode, size_bytes, mtime_ns, seen["link"], seen["target"])

    async def pack(
        self, namespace: str, id_: str, path: bytes, name: bytes, target_fd: int, *, follow: bool
    ) -> int:
        """Write `path` as a tar whose entries begin with `name`; returns how many there are."""
        async with self._inside(namespace, id_) as (where, fds):
            job = {"job": "pack", "path": path, "name": name, "follow": follow, "portable": True}
            job |= where
            done = await self._worker.run(job, [target_fd, *fds])
        return int(done["entries"])

    async def put(
        self, namespace: str, id_: str, path: bytes, source_fd: int, owner: tuple[int, int] | None
    ) -> int:
        """Unpack a tar into the directory `path`; returns how many entries it had.

        `owner`: whose everything becomes, in place of what the tar says. Ids are the container's.
        """
        async with self._inside(namespace, id_, writable=True) as (where, fds):
            ids = await self._ids(namespace, id_)
            job = {"job": "extract", "path": path, "owner": owner, **ids, **where}
            done = await self._worker.run(job, [source_fd, *fds])
        return int(done["entries"])

    async def _ids(self, namespace: str, id_: str) -> dict[str, Any]:
        spec = json.loads((await self._containers.get(namespace, id_)).spec)
        maps = idmaps.from_spec(spec)
        return {
            "uids": [[one.container, one.host, one.size] for one in maps.uids],
            "gids": [[one.container, one.host, one.size] for one in maps.gids],
        }

    async def export(self, namespace: str, id_: str, target_fd: int) -> int:
        """Write the root file system, without what is mounted below it, as a tar."""
        container = await self._containers.get(namespace, id_)
        job = {"job": "pack", "path": b"/", "name": b".", "portable": True}
        job |= await self._root(container)
        return int((await self._worker.run(job, [target_fd]))["entries"])

    async def changes(self, namespace: str, id_: str, target_fd: int) -> int:
        """Write which names differ from the image's (shim/worker/changes.py)."""
        container = await self._containers.get(namespace, id_)
        key = self._snapshot_key(container)
        parent = (await self._snapshots.get(namespace, container.snapshotter, key)).parent
        done = await self._snapshots.compare(
            namespace, container.snapshotter, (parent, key), target_fd, {"job": "changes"}
        )
        return int(done["entries"])

    def _snapshot_key(self, container: Container) -> str:
        if not container.snapshot_key:
            raise FailedPrecondition(
                f"read files of {container.id}: its root is no snapshot of this manager"
            )
        return container.snapshot_key

    async def _root(self, container: Container) -> dict[str, Any]:
        self._snapshot_key(container)
        mounts = await self._containers.mounts(container)
        return {"mounts": [[m.type, m.source, list(m.options)] for m in mounts]}

    @contextlib.asynccontextmanager
    async def _inside(
        self, namespace: str, id_: str, *, writable: bool = False
    ) -> AsyncIterator[tuple[dict[str, Any], list[int]]]:
        """Where a worker finds the container, and the descriptor that leads there if it lives."""
        container = await self._containers.get(namespace, id_)
        if writable:
            turn = self._containers.turn
            await turn(namespace, id_, lambda: self._living(namespace, id_) is None)
            container = await self._containers.get(namespace, id_)  # as it is after that wait
        living = self._living(namespace, id_)
        # Nothing is awaited in between, so that nobody starts it between the two. A living one is
        # held too: it may end while it is written to, and another task be made of it.
        held = self._containers.held(namespace, id_, alone=living is None)
        with held if writable else contextlib.nullcontext():
            if living is not None:
                fd = _mount_namespace(living)
                try:
                    yield {"writable": writable}, [fd]
                finally:
                    os.close(fd)
                return
            spec = json.loads(container.spec)
            if writable and (spec.get("root") or {}).get("readonly"):
                raise FailedPrecondition(f"write files of {id_}: its root is read-only")
            binds = _binds(spec)
            yield {**await self._root(container), "binds": binds, "writable": writable}, []

    def _living(self, namespace: str, id_: str) -> Entry | None:
        try:
            entry = self._tasks.find(namespace, id_)
        except NotFound:
            if self._tasks.exists(namespace, id_):
                raise Unavailable(f"read files of {id_}: it is being created") from None
            return None
        if entry.exit is None:
            return entry
        if not entry.cleaned.is_set():
            raise Unavailable(f"read files of {id_}: it has ended and is being cleaned up")
        return None


def _mount_namespace(entry: Entry) -> int:
    """Open the mount namespace of a task's init, and make sure that its pid has not been given to
    another process. Raises Unavailable, FailedPrecondition.
    """
    try:
        fd = os.open(f"/proc/{entry.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise Unavailable(f"read files of {entry.id}: its process is gone") from err
    # A shim reaps its container's processes alone: a child of it is none of somebody else's.
    if entry.pidfd < 0 or parent_of(entry.pid) != entry.shim_pid:
        os.close(fd)
        raise Unavailable(f"read files of {entry.id}: its process is gone")
    if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/mnt")):
        os.close(fd)
        raise FailedPrecondition(f"read files of {entry.id}: it has no mounts of its own")
    return fd


def _binds(spec: Mapping[str, Any]) -> list[list[Any]]:
    """[source, destination, read-only] of each bind of a spec."""
    found = []
    for mount in spec.get("mounts") or ():
        options = mount.get("options") or ()
        if mount.get("type") == "bind" or {"bind", "rbind"}.intersection(options):
            read_only = not _READ_ONLY.isdisjoint(options)
            found.append([mount["source"], mount["destination"], read_only])
    return found[:MAX_BINDS]


def shown(path: bytes) -> str:
    return ascii(os.fsdecode(path[:256]))
