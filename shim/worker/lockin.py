"""The lock: after `enter` or `pivot` the process can reach nothing but what its job is about.

A private mount namespace, a root of its own (a small read-only tmpfs that holds one bind mount
per directory of the job, or the mounted snapshot itself), no descriptor that is not on the job's
list, no_new_privs, and only the capabilities that the job uses. So a mistake in the path handling
of a job, which works with content that anybody may have written, meets an empty host.

    /            tmpfs, read-only
    /target      the directory that the job writes          rw,nosuid,nodev,noexec
    /lower/<n>   directories that it reads                  ro,nosuid,nodev,noexec
"""

import os

from lighter.shim import linux
from lighter.shim.worker import syscalls
from lighter.shim.worker.failure import typed

READ_ONLY = linux.MS_RDONLY
RECURSIVE = linux.MS_REC

# A directory that every host has and that holds no source of a mount: the new root is stacked on
# it in the private namespace, and only until pivot_root(2).
SPARE_DIR = "/proc"

_HARMLESS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


class Bind:
    """One directory of the host that stays reachable: `source` appears as `/name`."""

    __slots__ = ("flags", "name", "source")

    def __init__(self, source: str, name: str, flags: int = 0) -> None:
        self.source = source
        self.name = name
        self.flags = flags


def private_mounts() -> None:
    """Leave the host's mount namespace; what is mounted from here on, nobody else sees."""
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    except OSError as err:
        raise typed(err, "lock worker in: make mount namespace") from err


def enter(binds: list[Bind], capabilities: tuple[int, ...]) -> None:
    """Make `binds` the whole file system of this process. Raises a typed error.

    A directory with RECURSIVE keeps the mounts below it, so that they are met, not looked under.
    """
    private_mounts()
    try:
        linux.mount("lighter-worker", SPARE_DIR, "tmpfs", _HARMLESS, "size=1m,mode=0700")
        for bind in binds:
            _bind(bind)
        linux.mount(
            "", SPARE_DIR, "", linux.MS_REMOUNT | linux.MS_BIND | _HARMLESS | linux.MS_RDONLY
        )
    except OSError as err:
        raise typed(err, "lock worker in: build root") from err
    pivot(SPARE_DIR)
    drop_privileges(capabilities)


def _bind(bind: Bind) -> None:
    place = f"{SPARE_DIR}/{bind.name}"
    os.makedirs(place, 0o700)
    try:
        linux.mount(bind.source, place, "", linux.MS_BIND | (bind.flags & linux.MS_REC))
        # mount(2): the first call ignores every flag but MS_REC, the second sets them.
        flags = linux.MS_REMOUNT | linux.MS_BIND | _HARMLESS | (bind.flags & linux.MS_RDONLY)
        linux.mount("", place, "", flags)
    except OSError as err:
        raise typed(err, f"lock worker in: bind {bind.source}") from err


def pivot(new_root: str) -> None:
    """Make the mount at `new_root` the root and drop the old one (pivot_root(2), "NOTES")."""
    try:
        os.chdir(new_root)
        linux.pivot_root(".", ".")
        # Both roots are stacked on "/" now; "." is still the old one below.
        linux.umount(".", linux.MNT_DETACH)
        os.chdir("/")
    except OSError as err:
        raise typed(err, f"lock worker in: pivot to {new_root}") from err


def drop_privileges(keep: tuple[int, ...]) -> None:
    """Keep the named capabilities and no way to get others back. Per thread: before any starts."""
    try:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        for capability in range(64):
            try:
                linux.prctl(syscalls.PR_CAPBSET_DROP, capability)
            except OSError:
                break  # EINVAL: the kernel has no capability of this number, nor a later one
        syscalls.capset(sum(1 << capability for capability in keep))
    except OSError as err:
        raise typed(err, "lock worker in: drop capabilities") from err
    os.umask(0)


def close_all_but(keep: list[int]) -> None:
    """Close every descriptor except standard streams and `keep`: none may lead out of the lock."""
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def path_of(fd: int) -> str:
    """The path of a received directory, to bind it by. Raises NotFound when it is gone.

    A received descriptor belongs to the sender's mount namespace and cannot be bound itself
    (mount(2) would answer EINVAL); `same_file` checks, once inside, that the path led to it.
    """
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as err:
        raise typed(err, f"lock worker in: find path of descriptor {fd}") from err


def same_file(fd: int, path: str) -> bool:
    """Whether `path` is the very file that `fd` has open."""
    ours, theirs = os.stat(path), os.fstat(fd)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
