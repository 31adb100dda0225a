"""User namespaces: which ids of the host stand for the ids of a container (user_namespaces(7))."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lighter.daemon.oci.checks import MAX_ID_MAPPINGS
from lighter.proto.errors import InvalidArgument

MAX_ID = (1 << 32) - 2  # 4294967295 is "no id"

# What containerd's snapshotters and its clients call the mapping of a snapshot.
UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"


@dataclass(frozen=True)
class IdRange:
    container: int
    host: int
    size: int

    def as_oci(self) -> dict[str, int]:
        return {"containerID": self.container, "hostID": self.host, "size": self.size}

    def __str__(self) -> str:
        return f"{self.container}:{self.host}:{self.size}"


@dataclass(frozen=True)
class IdMaps:
    """Both are empty, for no user namespace, or both have ranges."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uids)

    @property
    def root(self) -> tuple[int, int]:
        """The host's uid and gid of the container's root."""
        return _host_root(self.uids), _host_root(self.gids)


def read_ranges(values: Iterable[object], what: str) -> tuple[IdRange, ...]:
    """Read a request's lists [container id, host id, size]. Raises InvalidArgument."""
    ranges = []
    for value in values:
        whole = isinstance(value, list | tuple) and len(value) == 3
        if not whole or not all(type(number) is int for number in value):  # type: ignore[attr-defined]
            raise InvalidArgument(f"map {what}: expected container id, host id and size")
        one = IdRange(*value)  # type: ignore[misc]
        ends = (one.container + one.size - 1, one.host + one.size - 1)
        if min(one.container, one.host) < 0 or one.size < 1 or max(ends) > MAX_ID:
            raise InvalidArgument(f"map {what} {one}: an id is not between 0 and {MAX_ID}")
        ranges.append(one)
    if len(ranges) > MAX_ID_MAPPINGS:
        raise InvalidArgument(f"map {what}: at most {MAX_ID_MAPPINGS} ranges")
    for key in ("container", "host"):
        _check_apart(sorted((getattr(one, key), one.size) for one in ranges), what, key)
    return tuple(ranges)


def _check_apart(starts: list[tuple[int, int]], what: str, key: str) -> None:
    for (first, size), (second, _) in pairwise(starts):
        if first + size > second:
            raise InvalidArgument(f"map {what}: two ranges have the {key} id {second}")


def id_maps(uids: tuple[IdRange, ...], gids: tuple[IdRange, ...]) -> IdMaps:
    """Raises InvalidArgument for one without the other, or without a root."""
    if bool(uids) != bool(gids):
        raise InvalidArgument("map ids: uids and gids must be mapped together")
    if uids:
        _host_root(uids)
        _host_root(gids)
    return IdMaps(uids, gids)


def _host_root(ranges: Iterable[IdRange]) -> int:
    """The host's id for the container's id 0. Raises InvalidArgument where it has none."""
    for one in ranges:
        if one.container == 0:
            return one.host
    raise InvalidArgument("map ids: the container's id 0 is in no range")


def labels(maps: IdMaps) -> Mapping[str, str]:
    """The labels of a snapshot whose files are to belong to the container's ids.

    containerd knows one range each. Raises InvalidArgument for more.
    """
    if len(maps.uids) > 1 or len(maps.gids) > 1:
        raise InvalidArgument("map ids: labels of a snapshot hold one range each")
    return {UID_LABEL: str(maps.uids[0]), GID_LABEL: str(maps.gids[0])}


def from_spec(spec: Mapping[str, Any]) -> IdMaps:
    """The mappings of an OCI spec. Raises InvalidArgument."""
    linux = spec.get("linux") or {}

    def ranges(key: str) -> tuple[IdRange, ...]:
        found = linux.get(key) or ()
        return read_ranges(
            [[one.get("containerID", 0), one.get("hostID", 0), one.get("size")] for one in found],
            key,
        )

    return id_maps(ranges("uidMappings"), ranges("gidMappings"))
