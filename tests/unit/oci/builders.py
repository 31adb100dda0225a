"""What the tests here start from: one image, its identity and a request with every default."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lighter.daemon.oci.capabilities import ALL
from lighter.daemon.oci.host import Host
from lighter.daemon.oci.spec import SpecRequest
from lighter.daemon.oci.users import Identity
from lighter.daemon.types import ImageConfig

IMAGE = ImageConfig(
    entrypoint=("/bin/sh", "-c"),
    cmd=("sleep 1",),
    env=("A=1", "PATH=/bin:/usr/bin"),
    working_dir="/tmp",
    labels={"k": "v"},
)
ROOT = Identity(0, 0, (0, 4, 6), "root", "/root")
# The machine that the recorded specs come from does not let its root have CAP_SYS_RESOURCE.
HOST = Host(
    hostname="vm",
    capabilities=tuple(name for name in ALL if name != "CAP_SYS_RESOURCE"),
    network_files=("/etc/hosts", "/etc/resolv.conf"),
)
REQUEST = SpecRequest(
    id="x",
    namespace="default",
    cgroups_path="/default/x",
    image=IMAGE,
    identity=ROOT,
    host=HOST,
)


def request(**changes: Any) -> SpecRequest:
    return replace(REQUEST, **changes)


def ctr_specs() -> dict[str, dict[str, Any]]:
    """The specs that `ctr containers create` of Debian's containerd 1.6.20 made of IMAGE.

    Recorded from a real run, as one spec and, per flag, the JSON merge patch (RFC 7396) to it.
    """
    document = json.loads(Path(__file__).with_name("ctr_1_6_specs.json").read_text())
    plain = document["plain"]
    return {
        "plain": plain,
        **{name: _patched(plain, patch) for name, patch in document["changes"].items()},
    }


def _patched(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in base.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            result[key] = _patched(base[key], value)
        elif value is not None:
            result[key] = value
    return result
