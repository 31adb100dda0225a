"""Job `extract`: a tar into a directory of a container, or of a volume.

    {job: "extract", path, owner: [uid, gid] | nil, …see contained.py} + [the tar, namespace
     (optional)]                                       owner: in place of what the tar says;
     uids, gids: [[container's, host's, how many]] of a container whose ids are mapped
    {job: "extract", path: "/", target: directory of the host, devices: bool} + [the tar]
    → {entries, size_bytes}

Names and links mean what they mean to the container: nothing leads out of its root, whatever is
swapped meanwhile (see tree.py). As docker has it, a directory never takes the place of something
else, nor something else that of a directory; any other file is replaced.
"""

import os
import stat
from typing import Any

from lighter.proto.errors import FailedPrecondition, InvalidArgument
from lighter.shim.worker import contained, lockin, syscalls
from lighter.shim.worker.apply import Applier, clean
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import show
from lighter.shim.worker.inflate import Source
from lighter.shim.worker.metadata import LateTimes
from lighter.shim.worker.plain import Plain
from lighter.shim.worker.tarstream import DIRECTORY, HARDLINK, Entry, TarReader
from lighter.shim.worker.tree import Directory

_TARGET = "target"


class Extractor(Applier):
    """Writes entries below `prefix`, a path in the container that may go through its links."""

    __slots__ = ("_gids", "_owner", "_prefix", "_uids")

    def __init__(
        self, prefix: bytes, owner: tuple[int, int] | None, *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._prefix = prefix
        self._owner = owner
        self._uids: list[list[int]] = []
        self._gids: list[list[int]] = []

    def map_ids(self, uids: list[list[int]], gids: list[list[int]]) -> None:
        """Ids are the container's; the files get the host's that stand for them."""
        self._uids, self._gids = uids, gids

    def _apply(self, entry: Entry) -> None:
        if self._owner is not None:
            entry.uid, entry.gid = self._owner
        entry.uid, entry.gid = _mapped(self._uids, entry.uid), _mapped(self._gids, entry.gid)
        if entry.kind == HARDLINK:
            entry.linkname = self._below(entry.linkname)
        parent_path, _, name = self._below(entry.name).rpartition(b"/")
        if clean(entry.name):
            self._make(parent_path, name, entry)
        elif entry.kind == DIRECTORY:
            self._dress_directory(self._tree.make(self._prefix), entry)

    def _below(self, name: bytes) -> bytes:
        plain = clean(name)
        return self._prefix + b"/" + plain if self._prefix and plain else self._prefix or plain

    def _directory(self, parent: Directory, name: bytes, entry: Entry) -> None:
        try:
            old = os.lstat(name, dir_fd=parent.fd)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISDIR(old.st_mode):
                raise FailedPrecondition(f"{show(parent.child(name))} is there and no directory")
        super()._directory(parent, name, entry)

    def _special(self, parent: Directory, name: bytes, entry: Entry) -> None:
        # To a FIFO or a device they mean nothing; put on by name, after chown(2), they could come
        # to a program that the container has put in its place.
        entry.mode &= ~(stat.S_ISUID | stat.S_ISGID)
        super()._special(parent, name, entry)

    def _clear(self, parent: Directory, name: bytes) -> None:
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
            raise FailedPrecondition(f"{show(parent.child(name))} is a directory")
        os.unlink(name, dir_fd=parent.fd)
        self._tree.forget(parent.child(name))


def _mapped(ranges: list[list[int]], number: int) -> int:
    """The host's id; the id itself where nothing is mapped. Raises InvalidArgument."""
    for container, host, size in ranges:
        if container <= number < container + size:
            return host + number - container
    if ranges:
        raise InvalidArgument(f"the container has no id {number}")
    return number


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) not in (1, 2):
        raise InvalidArgument(f"extract: expected one or two descriptors, got {len(fds)}")
    path = contained.check_path(job)
    source = Source(fds[0], channel, hash_input=False, compressed=True)
    source.look()
    lockin.close_all_but([channel.fileno(), *fds])
    target = job.get("target")
    if target is None:
        root = contained.enter({**job, "writable": True}, fds[1] if len(fds) > 1 else -1)
    else:
        more = (syscalls.CAP_MKNOD,) if job.get("devices") else ()
        lockin.enter([lockin.Bind(target, _TARGET)], (*contained.WRITING, *more))
        root = os.open(f"/{_TARGET}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stream = ByteStream(iter(source))
    tar = TarReader(stream)
    budget, times = Budget(root, None), LateTimes()
    rules = Plain(root, budget)
    owner = job.get("owner")
    extractor = Extractor(
        clean(path),
        tuple(owner) if owner else None,
        tar,
        rules,
        times,
        budget,
        devices=bool(job.get("devices")),
    )
    extractor.map_ids(job.get("uids") or [], job.get("gids") or [])
    for entry in tar:
        extractor.apply(entry)
        channel.tick(entries=tar.entries)
    stream.drain()
    extractor.finish()
    return {"entries": tar.entries, "size_bytes": budget.used_bytes}
