"""SELinux levels: each container's is its own, as long as its record stands."""

import contextlib
from collections.abc import Iterator

from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.oci.selinux import OPTION, Labelling, Labels, SELinux


class Levels:
    def __init__(self, store: ContainerStore, selinux: SELinux) -> None:
        self._store = store
        self._selinux = selinux
        self._claimed: set[str] = set()  # of containers that are being made

    @contextlib.contextmanager
    def claim(self, asked: Labelling, *, privileged: bool) -> Iterator[Labels]:
        """Labels whose level nobody else gets until this container is recorded."""
        labels = self._selinux.labels(asked, self._taken, privileged=privileged)
        self._claimed.add(labels.level)
        try:
            yield labels
        finally:
            self._claimed.discard(labels.level)

    def _taken(self) -> set[str]:
        recorded = {one["level"] for one in self._store.option(OPTION)}
        for spec in self._store.specs_beside_damaged_options():
            process = spec.get("process")
            label = process.get("selinuxLabel") if isinstance(process, dict) else None
            if isinstance(label, str) and label.count(":") >= 3:
                recorded.add(label.split(":", 3)[3])  # user, role, type, level
        return self._claimed | recorded
