"""Linux capabilities of a container: the default set, and what a caller adds and drops.

Names are capabilities(7)'s. A set is a tuple without repeats, because the order is what a user
sees in the spec: containerd's default order, then what was added in the order it was asked for.
"""

from collections.abc import Collection, Iterable

from lighter.proto.errors import InvalidArgument

# include/uapi/linux/capability.h: the position is the capability's number.
ALL = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

# containerd 1.x's and Docker's. containerd 2 leaves out five of them (MKNOD, NET_RAW, SETFCAP,
# SYS_CHROOT, AUDIT_WRITE); they stay here, so that ping and package managers in images work.
DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)


def canonical(name: str) -> str:
    """Return "CAP_NET_ADMIN" for "net_admin", "CAP_NET_ADMIN", …, and "ALL" for "all".

    Raises InvalidArgument for a name that no kernel has.
    """
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in ALL:
        raise InvalidArgument(f"read capability {name[:40]!r}: no capability has this name")
    return full


def from_mask(mask: int) -> tuple[str, ...]:
    """Return the names in a bit mask, as CapEff of /proc/<pid>/status shows one (proc(5))."""
    return tuple(name for number, name in enumerate(ALL) if mask >> number & 1)


def select(
    add: Iterable[str] = (),
    drop: Iterable[str] = (),
    *,
    privileged: bool = False,
    available: Collection[str] = ALL,
) -> tuple[str, ...]:
    """Return the container's capabilities.

    `available` is what the manager itself has: neither an older kernel nor a virtual machine that
    took some away can give more. What is not in it is left out of "ALL" and of the default, and
    refused when it is asked for by name. As in ctr, a name that is both added and dropped is
    dropped; "drop ALL" empties the set first, so that what is added then stays.

    Raises InvalidArgument.
    """
    adds = [canonical(name) for name in add]
    drops = [canonical(name) for name in drop]
    if "ALL" in adds and "ALL" in drops:
        raise InvalidArgument("set capabilities: ALL is both added and dropped")
    known = tuple(name for name in ALL if name in available)
    for name in adds:
        if name != "ALL" and name not in known:
            raise InvalidArgument(f"add capability {name}: this host does not have it")

    if "ALL" in drops:
        chosen: tuple[str, ...] = ()
        drops = []
    elif privileged or "ALL" in adds:
        chosen = known
    else:
        chosen = tuple(name for name in DEFAULT if name in known)
    wanted = dict.fromkeys((*chosen, *(name for name in adds if name != "ALL")))
    return tuple(name for name in wanted if name not in drops)


def capability_sets(names: Iterable[str]) -> dict[str, list[str]]:
    """Return OCI `process.capabilities` for one set of names.

    Inheritable and ambient are left out, which means empty: with them, a program without file
    capabilities would keep its capabilities across execve by a user who is not root.
    """
    ordered = list(names)
    return {"bounding": ordered, "effective": list(ordered), "permitted": list(ordered)}
