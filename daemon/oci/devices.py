"""Devices of the host that a container is given: nodes of it, and the rules that open them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lighter.daemon.oci.checks import check_path
from lighter.daemon.oci.host import read_device, walk_devices
from lighter.proto.errors import InvalidArgument

ALL_ACCESS = "rwm"

# null random full tty zero urandom console pts/* ptmx (admin-guide/devices.txt).
_DEFAULTS: tuple[tuple[int, int | None], ...] = (
    *((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1)),
    *((136, None), (5, 2)),
)


@dataclass(frozen=True)
class DeviceGrant:
    """`node` is an OCI device; `access` some of r, w and m (mknod)."""

    node: Mapping[str, Any]
    access: str = ALL_ACCESS


@dataclass(frozen=True)
class DeviceWish:
    """A node of the host, or a directory of such. `destination` "": the same path inside."""

    path: str
    destination: str = ""
    access: str = ALL_ACCESS


def granted(wishes: Iterable[DeviceWish]) -> tuple[DeviceGrant, ...]:
    """The devices as they are on the host now. Raises InvalidArgument for what is none."""
    return tuple(grant for wish in wishes for grant in _granted(wish))


def _granted(wish: DeviceWish) -> Iterator[DeviceGrant]:
    source = check_path(wish.path, "device")
    target = check_path(wish.destination, "place of device") if wish.destination else source
    if not wish.access or set(wish.access) - set(ALL_ACCESS):
        raise InvalidArgument(f"use device {source}: access {wish.access!r} is not of r, w and m")
    if not os.path.isdir(source):
        try:
            node = read_device(source)
        except OSError as err:
            raise InvalidArgument(f"use device {source}: {err.strerror}") from err
        except ValueError as err:
            raise InvalidArgument(f"use device {source}: it is no device") from err
        yield DeviceGrant({**node, "path": target}, wish.access)
        return
    found = list(walk_devices(source))
    if not found:
        raise InvalidArgument(f"use devices of {source}: there is none in this directory")
    for node in found:
        inside = target + node["path"].removeprefix(source)
        yield DeviceGrant({**node, "path": inside}, wish.access)


def device_rules(grants: Iterable[DeviceGrant], all_allowed: bool) -> list[dict[str, Any]]:
    """Return the device cgroup's rules: all denied first, then what is allowed.

    Without the first rule the rest would be read as additions to "everything" on cgroup v1.
    """
    if all_allowed:
        return [{"allow": True, "access": ALL_ACCESS}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": ALL_ACCESS}]
    for major, minor in _DEFAULTS:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": ALL_ACCESS}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    for grant in grants:
        kept = {key: grant.node[key] for key in ("type", "major", "minor")}
        rules.append({"allow": True, **kept, "access": grant.access})
    return rules
