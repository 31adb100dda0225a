"""Which program runs containers: the one behind a runtime's name, checked before it is trusted."""

import os
import shutil
import stat
from collections.abc import Mapping

from lighter.daemon.errors import from_os
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound

# The names that containerd's clients give, and the key of `runtimes` in the configuration.
NAMES = {
    "io.containerd.runc.v2": "runc",
    "io.containerd.runc.v1": "runc",
    "io.containerd.runtime.v1.linux": "runc",
    "runc": "runc",
    "crun": "crun",
}
# A shim of containerd's for runc, given by its path: what it stands for is our own shim.
_SHIMS = {"containerd-shim", "containerd-shim-runc-v1", "containerd-shim-runc-v2"}


class Runtimes:
    """Finds programs by name. `configured` holds a path or a word for each of our own names."""

    def __init__(self, configured: Mapping[str, str]) -> None:
        self._configured = configured
        self._in_path: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The absolute path of the binary that `name` means; an absolute path means itself.

        It runs as root on bundles full of content, so only root may be able to change it
        (CVE-2019-5736). Raises InvalidArgument for a name, NotFound or FailedPrecondition for the
        file.
        """
        known = NAMES.get(name)
        program = os.path.basename(name) if name.startswith("/") else ""
        if program in _SHIMS:
            known = "runc"
        elif program.startswith("containerd-shim"):
            raise InvalidArgument(f"find runtime {name}: a shim of containerd's cannot be used")
        wanted = self._configured[known] if known else name
        if not known and not program:
            raise InvalidArgument(
                f"find runtime {name}: expected {', '.join(NAMES)} or an absolute path"
            )
        return self._checked(wanted)

    def is_hosts_runc(self, path: str) -> bool:
        """Whether `find` has found it as `runc` in PATH, with nothing else configured."""
        found = self._in_path.get("runc", "") if self._configured["runc"] == "runc" else ""
        return os.path.basename(found) == "runc" and os.path.realpath(found) == path

    def find_program(self, program: str, kind: str = "runtime") -> str:
        """As `find`, of one whose program is named itself: a path, or a word for PATH."""
        if "/" in program and not program.startswith("/"):
            raise InvalidArgument(f"find {kind} {program}: expected a word or an absolute path")
        return self._checked(program, kind)

    def _checked(self, wanted: str, kind: str = "runtime") -> str:
        path = os.path.realpath(self._look_up(wanted, kind))
        try:
            mode = os.stat(path)
        except OSError as err:  # it went just now, or is what a link in /proc does not say
            raise from_os(f"find {kind} {wanted}", err) from err
        if not stat.S_ISREG(mode.st_mode) or not os.access(path, os.X_OK):
            raise FailedPrecondition(f"find {kind} {path}: it is no executable file")
        if mode.st_uid != 0 or mode.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FailedPrecondition(f"find {kind} {path}: others than root may write to it")
        return path

    def _look_up(self, wanted: str, kind: str) -> str:
        """Where PATH has it. Searched anew when it is gone from there."""
        known = self._in_path.get(wanted)
        if known is not None and os.path.exists(known):
            return known
        found = shutil.which(wanted, mode=os.F_OK)
        if found is None and wanted == "runc":
            found = shutil.which("crun", mode=os.F_OK)  # all that CentOS Stream 10 has
        if found is None:
            raise NotFound(f"find {kind} {wanted}: no such program; is the package installed?")
        self._in_path[wanted] = found
        return found
