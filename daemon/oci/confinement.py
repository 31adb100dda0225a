"""What a security module or the cache allocation of the host does with a container, if it has one.

A profile that the kernel cannot apply is refused: a container that ran without it would look
protected.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,200}", re.ASCII)


@dataclass(frozen=True)
class Confinement:
    """`apparmor` is the name of a profile; `unmask` leaves kernel files readable and writable."""

    apparmor: str = ""
    rdt_class: str = ""
    unmask: bool = False


def check_rdt(class_name: str, root: str = "/") -> str:
    """Raises InvalidArgument, FailedPrecondition."""
    if not class_name:
        return ""
    if not _NAME.fullmatch(class_name) or "/" in class_name:
        raise InvalidArgument(f"use RDT class {class_name[:40]!r}: it cannot be named so")
    if not os.path.exists(f"{root}sys/fs/resctrl/schemata"):
        raise FailedPrecondition(
            f"use RDT class {class_name}: this host has no resctrl (/sys/fs/resctrl)"
        )
    return class_name


class AppArmor:
    """The host's, if it has one."""

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def profile(self, name: str) -> str:
        """The profile's name for the spec, "" for none; it must be loaded.

        Raises InvalidArgument, FailedPrecondition, NotFound.
        """
        if not name or name == "unconfined":
            return ""
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f"use AppArmor profile {name[:40]!r}: it cannot be named so")
        if not self._enabled():
            raise FailedPrecondition(f"use AppArmor profile {name}: this kernel has no AppArmor")
        if name not in self._loaded():
            raise NotFound(
                f"use AppArmor profile {name}: it is not loaded (apparmor_parser loads profiles)"
            )
        return name

    def _enabled(self) -> bool:
        switch = Path(f"{self._root}sys/module/apparmor/parameters/enabled")
        return switch.exists() and switch.read_text().startswith("Y")

    def _loaded(self) -> set[str]:
        try:
            rows = Path(f"{self._root}sys/kernel/security/apparmor/profiles").read_text()
        except OSError as err:
            raise FailedPrecondition(f"read AppArmor profiles: {err.strerror}") from err
        return {row.rpartition(" (")[0] for row in rows.splitlines()}
