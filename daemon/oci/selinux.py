"""SELinux labels of a container: its processes' and its files', from the host's policy.

container-selinux says in lxc_contexts(5) what containers are: container_t and container_file_t. Two
containers are kept apart by their level: each gets a pair of categories that no other one has, so
that the policy lets neither at the other's files.
"""

import json
import logging
import os
import random
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from lighter.daemon.files import read_capped
from lighter.daemon.types import Container, Mount
from lighter.proto.errors import (
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    ResourceExhausted,
    Unavailable,
)

log = logging.getLogger("lighter.selinux")

ATTRIBUTE = "security.selinux"
CATEGORIES = 1024  # c0 to c1023
OPTION = "selinux"
PARTS = ("user", "role", "type", "level", "filetype")
_MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,80}", re.ASCII)
_LEVEL = re.compile(r"s\d{1,2}(-s\d{1,2})?(:c\d{1,4}([.,]c\d{1,4}){0,20})?", re.ASCII)
_CONTEXT = re.compile(r'^\s*(\w+)\s*=\s*"([^"\n]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Labelling:
    """What is asked: `parts` in the place of the policy's own, or that there be no labels."""

    disable: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """The spec's process.selinuxLabel and linux.mountLabel; "" for none."""

    process: str = ""
    mount: str = ""

    @property
    def level(self) -> str:
        return self.process.split(":", 3)[3] if self.process else ""


def read_labelling(given: Mapping[str, str]) -> Labelling:
    """Read it from a request. Raises InvalidArgument."""
    parts = dict(given)
    disable = bool(parts.pop("disable", ""))
    for name, value in parts.items():
        pattern = _LEVEL if name == "level" else _NAME
        if name not in PARTS or not pattern.fullmatch(value):
            raise InvalidArgument(f"choose SELinux label {name[:20]}={value[:80]!r}: it is none")
    if disable and parts:
        raise InvalidArgument("choose SELinux label: it was asked for and switched off")
    return Labelling(disable, parts)


class SELinux:
    """The host's, below `root`. `by_default`: containers that ask for nothing are labelled too."""

    def __init__(self, by_default: bool, root: str = "/") -> None:
        self._by_default = by_default
        self._root = root

    def labels(
        self, asked: Labelling, taken: Callable[[], Collection[str]], *, privileged: bool
    ) -> Labels:
        """`taken` tells the levels of other containers.

        Raises FailedPrecondition where labels are asked for that the host cannot have.
        """
        is_there = os.path.exists(f"{self._root}sys/fs/selinux/enforce")
        if asked.parts and not is_there:
            raise FailedPrecondition("choose SELinux label: this kernel has no SELinux")
        wanted = bool(asked.parts) or (self._by_default and not privileged)
        if asked.disable or not wanted or not is_there:
            return Labels()
        contexts = self._contexts()
        process, file = (contexts[name].split(":", 3) for name in ("process", "file"))
        level = asked.parts.get("level") or _free_level(taken())
        user, role = (asked.parts.get(part) or process[n] for n, part in enumerate(PARTS[:2]))
        return Labels(
            f"{user}:{role}:{asked.parts.get('type') or process[2]}:{level}",
            f"{file[0]}:{file[1]}:{asked.parts.get('filetype') or file[2]}:{level}",
        )

    def label_snapshots(self, directory: str) -> None:
        """Give the directory of all snapshots, and each snapshotter's, the label of files.

        What is made in it inherits that. A container may map a program of an overlay only if it may
        read the layer's own file: there the kernel does not ask for the label of the mount. What
        fails is logged: a container that asks for a label says what is wrong.
        """
        if not os.path.exists(f"{self._root}sys/fs/selinux/enforce"):
            return
        try:
            label = self._contexts()["file"].encode()
            with os.scandir(directory) as found:
                places = [directory, *(one.path for one in found if one.is_dir())]
            for path in places:
                os.setxattr(path, ATTRIBUTE, label)
        except OSError as err:
            log.warning("label %s: %s", err.filename or directory, err.strerror)
        except LighterError as err:
            log.warning("label %s: %s", directory, err.message)

    def _contexts(self) -> dict[str, str]:
        config = self._read("etc/selinux/config")
        kind = re.search(r"^\s*SELINUXTYPE\s*=\s*(\w+)", config, re.MULTILINE)
        path = f"etc/selinux/{kind[1] if kind else 'targeted'}/contexts/lxc_contexts"
        found = dict(_CONTEXT.findall(self._read(path)))
        if any(found.get(name, "").count(":") < 3 for name in ("process", "file")):
            raise FailedPrecondition(
                f"choose SELinux label: /{path} names none for containers; "
                "the package container-selinux has it"
            )
        return found

    def _read(self, path: str) -> str:
        """ "" for a file that is not there. Raises Unavailable."""
        try:
            data = read_capped(f"{self._root}{path}", _MAX_FILE_BYTES)
        except OSError as err:
            raise Unavailable(f"choose SELinux label: read /{path}: {err.strerror}") from err
        return (data or b"").decode(errors="replace")


def _free_level(taken: Collection[str]) -> str:
    """Raises ResourceExhausted."""
    for _ in range(10_000):
        first, second = sorted(random.sample(range(CATEGORIES), 2))
        level = f"s0:c{first},c{second}"
        if level not in taken:
            return level
    raise ResourceExhausted("choose SELinux label: there is no pair of categories left")


def mount_label(container: Container) -> str:
    """What the files of a container have that was given a label by this manager, else ""."""
    if OPTION not in container.options:
        return ""
    return str(json.loads(container.spec)["linux"].get("mountLabel", ""))


def shared_label(label: str) -> str:
    """A file's label for all containers: at the level that none of them is kept from."""
    user, role, kind, _ = label.split(":", 3)
    return f"{user}:{role}:{kind}:s0"


def labelled(mount: Mount, label: str) -> Mount:
    """The mount of a root file system whose files all have the label; a bind cannot have one."""
    if not label or mount.type == "bind":
        return mount
    # Quoted, since a level has commas (mount(8), "context").
    return replace(mount, options=(*mount.options, f'context="{label}"'))
