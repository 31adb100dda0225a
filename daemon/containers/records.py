"""Containers as a client records them itself: spec, snapshot and labels are what it says.

`ContainerService` makes a container of an image; here nothing is made. The record alone is created,
changed and deleted: its snapshot and its image are the client's business. Both kinds stand in one
table, each front end can use what the other has made, and both change and forget a record here.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from lighter.daemon.content.gc import Collector
from lighter.daemon.events.log import EventLog, Telling
from lighter.daemon.metadata.containers import ContainerStore, Stored
from lighter.daemon.oci.idmaps import IdMaps, from_spec
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import Container
from lighter.proto import events
from lighter.proto.errors import FailedPrecondition, InvalidArgument
from lighter.proto.faults import hit
from lighter.proto.paths import Root

# What a client of containerd notes of the image's configuration.
STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"


class ContainerRecords:
    """The records of all namespaces, spec included."""

    def __init__(
        self,
        *,
        root: Root,
        store: ContainerStore,
        tasks: TaskService,
        events_log: EventLog,
        collector: Collector,
    ) -> None:
        self._root = root
        self._store = store
        self._tasks = tasks
        self._events = events_log
        self._collector = collector

    def create(self, container: Container) -> Container:
        """Record it; its times are set here. Raises AlreadyExists, InvalidArgument."""
        told = Telling(
            self._events,
            container.namespace,
            events.CONTAINER_CREATE,
            {
                "id": container.id,
                "image": container.image,
                "runtime": container.runtime,
                "runtime_options": container.options.get("runtime_options"),
            },
        )
        made = self._store.create(_understood(container), told)
        self._events.announce(*told.events)
        return made

    def get(self, namespace: str, container_id: str) -> Container:
        """Raises NotFound."""
        return self._store.get(namespace, container_id)

    def stored(self, namespace: str, container_id: str) -> Stored:
        """As `get`, for who has read this row before."""
        return self._store.stored(namespace, container_id)

    def list_stored(self, namespace: str) -> Iterator[Stored]:
        """All of a namespace, by id, with their specs."""
        return self._store.list_stored(namespace)

    def update(self, container: Container) -> Container:
        """Put what a client says in the place of what has its namespace and id. Raises NotFound."""
        return self.change(_understood(container))

    def change(self, container: Container) -> Container:
        """As `update`, for what this manager has changed itself."""
        body = {
            "id": container.id,
            "image": container.image,
            "labels": dict(container.labels),
            "snapshot_key": container.snapshot_key,
        }
        told = Telling(self._events, container.namespace, events.CONTAINER_UPDATE, body)
        made = self._store.replace(container, told)
        self._events.announce(*told.events)
        return made

    def delete(self, namespace: str, container_id: str) -> None:
        """Forget it unless it has a task. Raises NotFound, FailedPrecondition."""
        self._store.get(namespace, container_id)
        if self._tasks.exists(namespace, container_id):
            raise FailedPrecondition(f"cannot delete running task {container_id}")
        self.forget(namespace, container_id)

    def forget(self, namespace: str, container_id: str) -> None:
        """Take the record away, and the log of its tasks. Raises NotFound."""
        told = Telling(self._events, namespace, events.CONTAINER_DELETE, {"id": container_id})
        self._store.delete(namespace, container_id, told)
        hit("containers.row-gone")
        shutil.rmtree(self._root.logs(namespace, container_id), ignore_errors=True)
        self._events.announce(*told.events)
        self._collector.on_deleted()  # its image may have gone before it


def _understood(container: Container) -> Container:
    """The record with what this manager must know of the spec, so that `ctl` can start it too."""
    options: dict[str, Any] = dict(container.options)
    if "log" not in options:  # a client that records containers takes their output itself
        options |= {"log": {"driver": "none"}, "cgroup": ""}
    if "cgroup" in options:
        spec = _parsed(container.spec)
        cgroup = _value(spec, "linux", "cgroupsPath")
        options["cgroup"] = cgroup if isinstance(cgroup, str) else ""
        options["terminal"] = _value(spec, "process", "terminal") is True
        stop_signal = container.labels.get(STOP_SIGNAL_LABEL, "")
        options["stop_signal"] = stop_signal or options.get("stop_signal") or "SIGTERM"
        options.pop("id_root", None)
        try:
            maps = from_spec(spec if isinstance(spec, dict) else {})
        except (InvalidArgument, AttributeError, TypeError):
            maps = IdMaps()  # the runtime will say what is wrong with it
        if maps:
            options["id_root"] = list(maps.root)
    return Container(**{**vars(container), "options": options})


def _parsed(spec: bytes) -> Any:
    """None for what is no JSON: a record may hold anything, a task is refused then."""
    try:
        return json.loads(spec)
    except (ValueError, RecursionError):
        return None


def _value(spec: Any, *path: str) -> Any:
    """The value at this place in a spec; None when there is none."""
    value = spec
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
