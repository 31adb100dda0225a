"""Docker's :z and :Z: the labels of what a labelled container binds, put on before each start.

What stands in the options of its record:

    relabel: [{path, shared, volume}]   shared: for all containers, without a category of one's own

A container without a label has none of these. Nothing is put back when it goes, as with docker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from lighter.daemon.images.worker import Worker
from lighter.daemon.oci.selinux import mount_label, shared_label
from lighter.daemon.types import Container
from lighter.proto.errors import InvalidArgument
from lighter.proto.paths import Root, State

OPTION = "relabel"
SHARED, PRIVATE = "z", "Z"
# With another label the host itself would no longer work. Those of podman and docker, and others of
# the kind; what is in them may be relabelled, but for what is in CLOSED.
SYSTEM = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt"),
    *("/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var"),  # noqa: S108
    *("/etc/group", "/etc/passwd", "/etc/pki", "/etc/selinux", "/etc/shadow", "/etc/ssh"),
    *("/etc/ssl", "/etc/systemd", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec"),
    *("/usr/local", "/usr/sbin", "/usr/share", "/var/cache", "/var/lib", "/var/log"),
    *("/var/run", "/var/spool", "/var/tmp"),  # noqa: S108
)
CLOSED = ("/boot", "/dev", "/proc", "/sys")


@dataclass(frozen=True)
class Wish:
    """That `path` have the container's label; `volume`: it is one of the manager's."""

    path: str
    shared: bool
    volume: bool


def asked(
    mounts: Sequence[Mapping[str, Any]], volumes: Mapping[str, bool]
) -> tuple[tuple[Mapping[str, Any], ...], tuple[Wish, ...]]:
    """The mounts without the words, and what these ask for. Raises InvalidArgument.

    `volumes`: paths of volumes among the sources.
    """
    plain, wishes = [], []
    for mount in mounts:
        given = mount.get("options")
        options = list(given) if _is_list_of_texts(given) else []
        words = {SHARED, PRIVATE}.intersection(options)
        if not words or not isinstance(mount.get("source"), str):
            plain.append(mount)
            continue
        if len(words) > 1:
            raise InvalidArgument(f"mount {mount.get('destination')}: z and Z exclude each other")
        rest = [option for option in options if option not in words]
        plain.append({**mount, "options": rest})
        if mount.get("type") == "bind" or {"bind", "rbind"}.intersection(rest):
            source = str(mount["source"])
            wishes.append(Wish(source, SHARED in words, source in volumes))
    return tuple(plain), tuple(wishes)


def _is_list_of_texts(given: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(given, list | tuple) and all(isinstance(one, str) for one in given)


class Relabelling:
    """Relabels files by a worker, which ends with the call that asked for it."""

    def __init__(self, worker: Worker, root: Root, state: State) -> None:
        self._worker = worker
        self._root = root
        self._state = state

    async def prepare(
        self, wishes: Sequence[Wish], volumes: Mapping[str, bool], label: str
    ) -> dict[str, Any]:
        """What the record of a new container says, whose files have this label, "" for none.

        `volumes`: by path, whether nobody has used it: such a one gets the label that all
        containers may use. Raises InvalidArgument for directories of the system.
        """
        if not label:
            return {}
        for wish in wishes:
            await self._run(wish, "")
        named = {wish.path for wish in wishes}
        for path, is_fresh in volumes.items():
            if is_fresh and path not in named:
                await self._run(Wish(path, shared=True, volume=True), shared_label(label))
        rows = [{"path": w.path, "shared": w.shared, "volume": w.volume} for w in wishes]
        return {OPTION: rows} if rows else {}

    async def apply(self, container: Container) -> bool:
        """Before a start; whether there was anything to do. Raises LighterError."""
        rows = container.options.get(OPTION)
        label = mount_label(container) if rows else ""
        if not label:
            return False
        for row in rows or ():
            wish = Wish(str(row["path"]), bool(row["shared"]), bool(row["volume"]))
            await self._run(wish, shared_label(label) if wish.shared else label)
        return True

    async def _run(self, wish: Wish, label: str) -> None:
        """With label "" it is only asked whether it may be."""
        ours = (self._root.dir, self._state.dir)
        closed = CLOSED if wish.volume else (*CLOSED, *ours)
        job = {
            "job": "relabel",
            "path": wish.path,
            "label": label,
            "system": [*SYSTEM, *ours],
            "closed": list(closed),
        }
        await self._worker.run(job, ())
