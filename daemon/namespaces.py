"""Namespaces as front ends handle them: the store, its events, and what a removal asks for."""

from collections.abc import Mapping

from lighter.daemon.content.gc import Collector
from lighter.daemon.content.ingests import Ingests
from lighter.daemon.events.log import EventLog, Telling
from lighter.daemon.metadata.namespaces import NamespaceStore, merge_labels
from lighter.daemon.types import Namespace
from lighter.proto import events
from lighter.proto.errors import FailedPrecondition


class NamespaceService:
    """The events of a namespace are filed under itself, its last one too."""

    def __init__(
        self, store: NamespaceStore, ingests: Ingests, collector: Collector, events_log: EventLog
    ) -> None:
        self._store = store
        self._ingests = ingests
        self._collector = collector
        self._events = events_log

    def get(self, name: str) -> Namespace:
        """Raises NotFound."""
        return self._store.get(name)

    def list(self) -> tuple[Namespace, ...]:
        """All, by name."""
        return self._store.list()

    def create(self, name: str, labels: Mapping[str, str]) -> Namespace:
        """Raises AlreadyExists, InvalidArgument."""
        told = self._telling(events.NAMESPACE_CREATE, name, labels=dict(labels))
        made = self._store.create(name, labels, told)
        self._events.announce(*told.events)
        return made

    def label(self, name: str, changes: Mapping[str, str]) -> Namespace:
        """Set labels; the value "" removes one. Raises NotFound, InvalidArgument."""
        labels = merge_labels(self._store.get(name).labels, changes)
        told = self._telling(events.NAMESPACE_UPDATE, name, labels=labels)
        changed = self._store.label(name, changes, told)
        self._events.announce(*told.events)
        return changed

    async def delete(self, name: str) -> None:
        """Remove one that nothing is in any more. Raises NotFound, FailedPrecondition."""
        self._store.get(name)
        if busy := self._ingests.being_written(name):
            raise FailedPrecondition(f"delete namespace {name}: ingest {busy[0]} is being written")
        # What nobody needs, and a lease that is over, hold nothing.
        await self._collector.collect(name)
        told = self._telling(events.NAMESPACE_DELETE, name)
        self._store.delete(name, told)
        self._events.announce(*told.events)
        await self._ingests.abort_all(name)

    def _telling(self, topic: str, name: str, **more: object) -> Telling:
        return Telling(self._events, name, topic, {"name": name, **more})
