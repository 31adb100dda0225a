"""A small init of the host's as a container's process 1: it reaps, and passes signals on.

It is bound into the container, where the host's libraries are not, so it must be linked statically.
"""

import os
import shutil
import struct
from typing import Any

from lighter.daemon.oci.mounts import mount
from lighter.proto.errors import NotFound

# What distributions call them: docker's own, tini's static one, podman's.
PROGRAMS = ("docker-init", "tini-static", "catatonit", "tini", "dumb-init")
DIRECTORIES = ("/usr/libexec/docker", "/usr/libexec/podman", "/usr/libexec/catatonit")
PLACE = "/dev/init"  # on the container's own tmpfs, so that no image has to have the place

_PT_INTERP = 3


def find_init(path: str | None = None) -> str:
    """The program's absolute path. Raises NotFound, saying what was there and why not it."""
    search = os.pathsep.join((path or os.environ.get("PATH", os.defpath), *DIRECTORIES))
    dynamic = []
    for program in PROGRAMS:
        found = shutil.which(program, path=search)
        if found is None:
            continue
        if is_static(found):
            return os.path.realpath(found)
        dynamic.append(found)
    cause = f"{', '.join(dynamic)} needs the host's libraries" if dynamic else "there is none here"
    raise NotFound(
        f"use init: {cause}; a static one of {', '.join(PROGRAMS)} is expected (package tini)"
    )


def is_static(path: str) -> bool:
    """Whether an ELF program names no interpreter (elf(5)); of other files False."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:5] != b"\x7fELF\x02":
                return False
            offset, size, count = (
                *struct.unpack_from("<Q", head, 32),
                *struct.unpack_from("<HH", head, 54),
            )
            file.seek(offset)
            table = file.read(size * count)
    except (OSError, struct.error):
        return False
    kinds = [struct.unpack_from("<I", table, at)[0] for at in range(0, len(table), size or 1)]
    return bool(kinds) and _PT_INTERP not in kinds


def put_before(spec: dict[str, Any], program: str) -> None:
    """Let the container's process be a child of `program`."""
    spec["mounts"].append(mount(PLACE, "bind", program, "bind", "ro", "nosuid", "nodev"))
    spec["process"]["args"] = [PLACE, "--", *spec["process"]["args"]]
