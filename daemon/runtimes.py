"""Which program runs containers: the one behind a runtime's name, checked before it is trusted."""

import os
import shutil
import stat
from collections.abc import Mapping

from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound

# The names that containerd's clients give, and the key of `runtimes` in the configuration.
NAMES = {
    "io.containerd.runc.v2": "runc",
    "io.containerd.runc.v1": "runc",
    "runc": "runc",
}


def find_runtime(configured: Mapping[str, str], name: str) -> str:
    """The absolute path of the binary that `name` stands for; an absolute path stands for itself.

    It runs as root on bundles full of content, so only root may be able to change it
    (CVE-2019-5736). Raises InvalidArgument for a name, NotFound or FailedPrecondition for the file.
    """
    known = NAMES.get(name)
    wanted = configured[known] if known else name
    if not known and not name.startswith("/"):
        raise InvalidArgument(
            f"find runtime {name}: expected {', '.join(NAMES)} or an absolute path"
        )
    found = shutil.which(wanted, mode=os.F_OK)
    if found is None:
        raise NotFound(f"find runtime {wanted}: no such program; is the package installed?")
    path = os.path.realpath(found)
    mode = os.stat(path)
    if not stat.S_ISREG(mode.st_mode) or not os.access(path, os.X_OK):
        raise FailedPrecondition(f"find runtime {path}: it is no executable file")
    if mode.st_uid != 0 or mode.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FailedPrecondition(f"find runtime {path}: others than root may write to it")
    return path
