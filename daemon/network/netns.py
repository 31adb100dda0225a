"""Network namespaces by path: made, taken over from a process, removed; by a worker each time."""

import os
from collections.abc import Iterator

from lighter.daemon import files
from lighter.daemon.images.worker import Worker
from lighter.proto.errors import FailedPrecondition
from lighter.proto.paths import State


class NetworkNamespaces:
    """Those of one instance, `<state>/netns/<key>`."""

    def __init__(self, state: State, worker: Worker) -> None:
        self._dir = state.netns
        self._worker = worker

    def path(self, key: str) -> str:
        return f"{self._dir}/{key}"

    def is_there(self, path: str) -> bool:
        """Whether a namespace is mounted on it: nobody has taken it off by hand, or rebooted."""
        try:
            return os.stat(path).st_dev != os.stat(self._dir).st_dev
        except OSError:
            return False

    async def make(self, key: str, *, ipv6: bool) -> None:
        """A new one, its loopback up. Without `ipv6` interfaces have none unless given one."""
        files.make_directory(self._dir, 0o700)
        await self._worker.run({"job": "netns", "path": self.path(key), "ipv6": ipv6}, ())

    async def keep(self, key: str, pid: int, cgroup: str) -> None:
        """Keep the network namespace of a process in this cgroup. Raises FailedPrecondition when
        the process is not in it.
        """
        files.make_directory(self._dir, 0o700)
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise FailedPrecondition(f"find network of process {pid}: {err.strerror}") from err
        try:
            # Looked at after the opening: a pid that came round meanwhile is in another cgroup.
            if not _is_in(pid, cgroup):
                raise FailedPrecondition(f"find network of process {pid}: it has ended")
            await self._worker.run({"job": "netns", "path": self.path(key)}, [fd])
        finally:
            os.close(fd)

    async def without_ipv6(self, key: str) -> None:
        """Give new interfaces in it no IPv6 unless they are given an address, as in a namespace
        that we make.
        """
        await self._worker.run({"job": "netns-no-ipv6", "path": self.path(key)}, ())

    async def remove(self, key: str) -> None:
        """Take it off; processes in it keep it until they end."""
        if self.exists(key):
            await self._worker.run({"job": "netns-remove", "path": self.path(key)}, ())

    def exists(self, key: str) -> bool:
        return os.path.lexists(self.path(key))

    def kept(self) -> Iterator[str]:
        """The keys of all files there, whether something is mounted on them or not."""
        try:
            yield from sorted(os.listdir(self._dir))
        except FileNotFoundError:
            return


def is_own_network(pid: int) -> bool:
    """Whether a process has another network than this manager."""
    try:
        ours, theirs = os.stat("/proc/self/ns/net"), os.stat(f"/proc/{pid}/ns/net")
    except OSError as err:
        raise FailedPrecondition(f"find network of process {pid}: {err.strerror}") from err
    return (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)


def _is_in(pid: int, cgroup: str) -> bool:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            paths = [line.rstrip("\n").split(":", 2)[2] for line in file]
    except OSError:
        return False
    return any(path == cgroup or path.startswith(cgroup + "/") for path in paths)
